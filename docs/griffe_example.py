"""Griffe extension: an "Example:" section of a docstring is read like "Examples:", as code and not as Markdown."""

import griffe


class ExampleSections(griffe.Extension):
    """Rename the sections before docstrings are parsed."""

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("Example:\n", "Examples:\n")
