"""The only way from a raw row to a record."""

from __future__ import annotations

from recipe_runner import Component


def _format(name: str, target: str, config: str, summary: str, module: str = "rows", version: int = 1) -> Component:
    home = "recipe_plugins.formats"
    return Component(
        kind="format",
        name=name,
        target=f"{home}.{module}:{target}",
        config=f"{home}.config:{config}",
        version=version,
        summary=summary,
    )


TALKS = 2
"""The version of what reads turns: 2 keeps tools, tool calls, reasoning and `train`."""

COMPONENTS: list[Component] = [
    _format("auto", "Auto", "AutoFormat", "a row that has `text` or `messages` already", version=TALKS),
    _format("text", "Text", "TextFormat", "a document in one column"),
    _format("alpaca", "Alpaca", "AlpacaFormat", "instruction, input and output in three columns"),
    _format("messages", "Messages", "MessagesFormat", "a conversation in one column", version=TALKS),
    _format("sharegpt", "ShareGPT", "ShareGPTFormat", "turns of `from` and `value` in one column", "chats", TALKS),
    _format(
        "prompt-completion",
        "PromptCompletion",
        "PromptCompletionFormat",
        "a prompt and what follows it",
        "chats",
        TALKS,
    ),
    _format("preference", "Preference", "PreferenceFormat", "a better and a worse answer to one prompt", "chats"),
    _format(
        "unpaired-preference",
        "UnpairedPreference",
        "UnpairedPreferenceFormat",
        "an answer, and whether it was wanted",
        "chats",
    ),
]
