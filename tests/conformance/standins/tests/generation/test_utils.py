class GenerationTesterMixin:
    """Stand-in: not in the sdist, and only for models that generate text."""
