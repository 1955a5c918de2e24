"""The jobs that run: command line, configuration, Ray Train, Ray Tune, MLflow, evaluation, report.

>>> import pipeline
>>> model = pipeline.load("models:/agman-shop@champion")              # doctest: +SKIP
>>> model.similarity("a.jpg", "b.jpg", "sleeve_length")               # doctest: +SKIP
>>> gallery = pipeline.Gallery.open("shop-gallery")                   # doctest: +SKIP
>>> gallery.search("a.jpg", {"sleeve_length": 1, "category": 0.5})    # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.registry.trained import load
    from pipeline.retrieval.picture_search import PictureGallery as Gallery

__all__ = ["Gallery", "load"]


def __getattr__(name: str) -> Any:
    """Import what is asked for: torch and pyarrow take seconds, which `import pipeline` need not."""
    if name == "load":
        from pipeline.registry.trained import load

        return load
    if name == "Gallery":
        from pipeline.retrieval.picture_search import PictureGallery

        return PictureGallery
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
