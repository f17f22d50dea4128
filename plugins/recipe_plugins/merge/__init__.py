"""The stage `merge`, and its methods for several models."""

from __future__ import annotations

from recipe_runner import Component

COMPONENTS: list[Component] = [
    Component(
        kind="stage",
        name="merge",
        target="recipe_plugins.merge.stage:MergeStage",
        config="recipe_plugins.merge.config:MergeConfig",
        version=3,
        summary="adds an adapter to its base, and proves that the result computes the same; or merges models",
    ),
    Component(
        kind="kind",
        name="merge-method",
        target="recipe_plugins.merge.config:MergeMethod",
        summary="how several models become one",
    ),
    Component(
        kind="merge-method",
        name="linear",
        target="recipe_plugins.merge.methods:Linear",
        config="recipe_plugins.merge.config:LinearConfig",
        summary="weighted mean of models",
    ),
    Component(
        kind="merge-method",
        name="slerp",
        target="recipe_plugins.merge.methods:Slerp",
        config="recipe_plugins.merge.config:SlerpConfig",
        summary="along the great circle between two models",
    ),
    Component(
        kind="merge-method",
        name="ties",
        target="recipe_plugins.merge.methods:Ties",
        config="recipe_plugins.merge.config:SparseConfig",
        summary="trimmed task vectors, signs elected, disjoint mean",
    ),
    Component(
        kind="merge-method",
        name="dare-linear",
        target="recipe_plugins.merge.methods:DareLinear",
        config="recipe_plugins.merge.config:SparseConfig",
        summary="task vectors, randomly dropped and rescaled, added to their base",
    ),
    Component(
        kind="merge-method",
        name="dare-ties",
        target="recipe_plugins.merge.methods:DareTies",
        config="recipe_plugins.merge.config:SparseConfig",
        summary="task vectors, randomly dropped and rescaled, signs elected, disjoint mean",
    ),
    Component(
        kind="merge-method",
        name="task-arithmetic",
        target="recipe_plugins.merge.methods:TaskArithmetic",
        config="recipe_plugins.merge.config:TaskArithmeticConfig",
        summary="task vectors added to their base",
    ),
    Component(
        kind="merge-method",
        name="breadcrumbs",
        target="recipe_plugins.merge.methods:Breadcrumbs",
        config="recipe_plugins.merge.config:BreadcrumbsConfig",
        summary="task vectors without their largest and smallest changes, added to their base",
    ),
    Component(
        kind="merge-method",
        name="passthrough",
        target="recipe_plugins.merge.methods:Passthrough",
        config="recipe_plugins.merge.config:PassthroughConfig",
        summary="layers of models on top of each other",
    ),
]
