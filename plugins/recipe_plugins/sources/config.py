"""The configs of the sources. A path stays out of the key: the content it leads to enters as the source's revision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from recipe_runner import Config, Place, RecipeError, Size


class SourceConfig(Config):
    """Base of the built-in sources' configs."""

    @model_validator(mode="before")
    @classmethod
    def _columns(cls, data: Any) -> Any:
        """`fields` is looked for here first: it stands in the source's `format`."""
        if isinstance(data, Mapping) and "fields" in data:
            what = "which columns a document is made of is said in the source's `format`"
            raise RecipeError(what, next="format: {use: text, fields: {text: COLUMN}}", field=["fields"])
        return data

    def size(self) -> int | None:
        """Bytes that it would read, where that is cheap to know."""
        return None


class FilesConfig(SourceConfig):
    """Files on this machine, or at a URL of a scheme that fsspec knows (`s3://`, `gs://`, `hf://`, `https://`).

    Credentials and options stand in no recipe: they are what fsspec finds in its configuration (files `*.json` and
    `*.ini` in `~/.config/fsspec`, `FSSPEC_S3_KEY` and the like), or the provider's own library (AWS profiles, `gcloud`,
    `hf auth login`). For HTTP that is `{"https": {"client_kwargs": {"headers": {"Authorization": "Bearer …"}}}}`.
    """

    path: Annotated[str, Place()] = Field(description="a file, a folder (searched to the bottom) or a glob")

    def size(self) -> int | None:
        """Bytes on disk; unknown while a compressed file is among them, or at a URL."""
        from recipe_plugins.sources.files import matching, packed, size_of
        from recipe_plugins.sources.remote import is_remote

        files = () if is_remote(self.path) else matching(self.path)
        return None if any(packed(file) for file in files) or not files else sum(map(size_of, files))


class JsonlConfig(FilesConfig):
    """One JSON object a line."""

    max_line: Size = Field(default=256_000_000, gt=0, description="a longer line is a bad row")


class TextConfig(FilesConfig):
    """One document a file; its id is the path below the folder, or the part of it that the glob decides."""


class ParquetConfig(FilesConfig):
    """Parquet files; the format says which column is the text."""

    columns: tuple[str, ...] = Field(default=(), description="columns to read; none: all")

    def size(self) -> None:
        """Unknown: the files are compressed."""
        return None


def _tab(given: Any) -> Any:
    """A tab, also as YAML has it without double quotes."""
    return "\t" if given in ("\\t", "tab") else given


class CsvConfig(FilesConfig):
    """Files whose first line names the columns."""

    delimiter: Annotated[str, BeforeValidator(_tab)] = Field(
        default=",", min_length=1, max_length=1, description=r"between values; `\t` or `tab` for files of tabs"
    )
    max_line: Size = Field(default=256_000_000, gt=0, description="a longer line is an error")


class WarcConfig(FilesConfig):
    """Web archives."""

    extract: Literal["trafilatura", "none"] = Field(default="trafilatura", description="none: HTML as it is")
    timeout: float = Field(default=10.0, gt=0, description="seconds for the extraction of a page")
    max_page: Size = Field(default=32_000_000, gt=0, description="a longer record is a bad row")

    def size(self) -> None:
        """Unknown: most of a page is not its text."""
        return None


class HuggingFaceConfig(SourceConfig):
    """`dataset` is what `datasets.load_dataset` takes; `saved` a folder that `save_to_disk` wrote; one of the two."""

    dataset: str | None = Field(default=None, description="org/name on the hub, or a builder such as `json`")
    saved: Annotated[str, Place()] | None = Field(default=None, description="a folder of `save_to_disk`")
    config: str | None = Field(default=None, description="the data set's configuration, called `name` in `datasets`")
    data_files: Annotated[str, Place()] | None = Field(default=None, description="for a builder: a local file or glob")
    split: str = "train"
    revision: str | None = Field(default=None, description="a commit of the hub; a full one pins the data")
    streaming: bool = Field(default=False, description="read without a copy on disk")

    @model_validator(mode="after")
    def _one(self) -> HuggingFaceConfig:
        if (self.dataset is None) == (self.saved is None):
            raise ValueError("give either `dataset` (hub or builder) or `saved` (a folder), not both or none")
        if self.data_files and (self.dataset is None or "/" in self.dataset):
            raise ValueError("`data_files` are files of this machine, for a builder such as `dataset: json`")
        return self


class PythonReferenceConfig(SourceConfig):
    """The language reference, as `pydoc_data.topics` has it."""

    section: Size = Field(default=2_000, ge=200, description="bytes from which on a section is closed")


class PythonDocstringsConfig(SourceConfig):
    """The docstrings of the standard library."""


class PythonSourceConfig(SourceConfig):
    """The code of the standard library."""


Kind = Literal["what", "how", "where"]


class PythonQuestionsConfig(SourceConfig):
    """Questions on the standard library's public classes and functions, with answers."""

    kinds: Annotated[tuple[Kind, ...], Field(min_length=1)] = ("what", "how", "where")


class PythonPreferencesConfig(SourceConfig):
    """Questions on the standard library, each with its answer and another one; for `format: preference`."""

    kinds: Annotated[tuple[Kind, ...], Field(min_length=1)] = ("what", "how")


class InventedFactsConfig(SourceConfig):
    """Questions on invented places, with answers that no text has."""

    count: int = Field(default=8, ge=1, description="facts; each is asked for in several ways")
    seed: int = Field(default=0, description="another seed, other facts")
