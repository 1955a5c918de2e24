"""`agman embed`, `index`, `search`, `tag` and `serve`: galleries of images, searching them, and naming values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from data_prep.errors import InputError
from data_prep.words import counted
from pipeline.cli.options import MODEL, NEW_FILE, PATH, PATH_OR_URI, json_option, overwrite_option, precision_option
from pipeline.common.console import emit, printable, progress_bar, say, show_table

if TYPE_CHECKING:
    from pipeline.retrieval.gallery import Gallery
    from pipeline.retrieval.search import Hit
    from pipeline.retrieval.store_index import Engine
    from pipeline.retrieval.tag import Tagged
    from pipeline.retrieval.update import Updated


@click.command()
@click.argument("model", type=MODEL, required=False)
@click.option(
    "--images", type=PATH_OR_URI, metavar="SOURCE", help="Folder of images, Parquet files, or a prepared dataset."
)
@click.option("--out", type=PATH, metavar="GALLERY", help="Gallery to write: a folder.")
@click.option(
    "--into",
    type=PATH,
    metavar="GALLERY",
    help="Gallery to bring up to its source: only new and changed images are embedded.",
)
@click.option(
    "--columns",
    type=PATH_OR_URI,
    metavar="TABLE",
    help="Table whose columns travel with the images: CSV, JSON Lines or Parquet, with the images' names.",
)
@click.option("--remove-missing", is_flag=True, help="With --into: remove images that are gone from the source.")
@click.option(
    "--workers", default=1, show_default=True, type=click.IntRange(1), help="Processes, one GPU each if there are GPUs."
)
@precision_option("Number format in which the model computes; --into keeps the gallery's.")
@overwrite_option
@json_option
def embed(
    model: str | None,
    images: str | Path | None,
    out: Path | None,
    into: Path | None,
    columns: str | Path | None,
    remove_missing: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Embed images under every attribute of MODEL, into a gallery.

    `agman search` and `agman serve` take it. The same command continues an embedding that was stopped or killed.
    """
    if (out is None) == (into is None):
        raise click.UsageError("give --out for a new gallery, or --into for one that exists")
    if out is not None and (model is None or images is None):
        raise click.UsageError("--out needs MODEL and --images SOURCE")
    if remove_missing and out is not None:
        raise click.UsageError("--remove-missing belongs to --into")
    if options["overwrite"] and into is not None:
        raise click.UsageError("--overwrite belongs to --out")
    from pipeline.retrieval.columns import read_catalogue
    from pipeline.retrieval.embed import embed_images
    from pipeline.retrieval.update import update_gallery

    table = None if columns is None else read_catalogue(columns)  # a wrong one is refused before hours of embedding
    if out is not None:
        assert model is not None and images is not None
        gallery = embed_images(model, images, out, progress=progress_bar, **options)
        if table is None:
            return emit(show_gallery(gallery), as_json)
        model, into = None, out
    assert into is not None
    updated = update_gallery(
        into,
        model,
        images,
        columns=table,
        remove_missing=remove_missing,
        workers=options["workers"],
        progress=progress_bar,
    )
    emit(show_updated(updated), as_json)


def show_updated(updated: Updated) -> dict[str, Any]:
    """Show what has changed in a gallery, and what it holds now; return the result for --json."""
    counts = {name: getattr(updated, name) for name in ("added", "replaced", "removed", "unchanged")}
    say(", ".join(f"{count:,} {name}" for name, count in counts.items()))
    if updated.missing:
        say(f"{updated.missing:,} gone from the source, but kept; --remove-missing removes them")
    kinds = updated.gallery.column_kinds
    if kinds:
        of = "" if updated.described is None else f", for {updated.described:,} of {len(updated.gallery):,} images"
        say(f"columns {', '.join(f'{printable(name)} ({kind})' for name, kind in kinds.items())}{of}")
    more = {"missing": updated.missing, "columns": kinds, "described": updated.described}
    return show_gallery(updated.gallery) | counts | more


def show_gallery(gallery: Gallery) -> dict[str, Any]:
    """Show what the gallery holds and what was rejected; return the result for --json."""
    info, refused = gallery.info, sum(gallery.info.rejects.values())
    say(
        f"{counted(info.images, 'image')} under {counted(len(info.attributes), 'attribute')}, {info.width} wide, in "
        f"{gallery.folder}"
    )
    for reason, count in info.rejects.items():
        say(f"  {count:,} rejected: {reason}")
    if refused:
        say(f"  each named in {gallery.files / 'rejects.parquet'}")
    for reason, count in info.skipped.items():
        say(f"  {count:,} skipped: {printable(reason)}")
    if info.skipped:
        say(f"  each named in {gallery.files / 'skipped.parquet'}")
    return {
        "images": info.images,
        "rejects": refused,
        "skipped": sum(info.skipped.values()),
        "attributes": list(info.attributes),
        "width": info.width,
        "model": info.model,
        "out": str(gallery.folder),
    }


@click.command()
@click.argument("gallery", type=PATH)
@click.option(
    "--to",
    "engine",
    type=click.Choice(["lancedb", "qdrant"]),
    help="Write the gallery into this vector store, which --approximate uses from then on.",
)
@click.option(
    "--uri",
    type=PATH_OR_URI,
    metavar="URI",
    help="The store's address: a folder or s3://… for lancedb, http://… or a folder for qdrant.",
)
@json_option
def index(gallery: Path, engine: Engine | None, uri: str | Path | None, as_json: bool) -> None:
    """Build an approximate index of GALLERY, and measure its recall.

    `agman search --approximate` uses it. The same command continues a writing --to a vector store that was stopped.
    """
    if uri is not None and engine is None:
        raise click.UsageError("--uri belongs to --to")
    from pipeline.retrieval.faiss_index import RECALL_AT
    from pipeline.retrieval.gallery import Gallery

    opened = Gallery.open(gallery)
    if engine is not None:
        from pipeline.retrieval.write_store import write_store

        record = write_store(opened, engine, uri, progress_bar)
        say(
            f"{counted(len(opened), 'image')} in {record.uri}, table {record.table}; "
            f"recall@{RECALL_AT} {record.recall:.3f} against exact search"
        )
        return emit(record.model_dump() | {"rows": len(opened)}, as_json)
    measured = opened.build_index(progress_bar).measured
    say(
        f"index of {counted(measured.rows, 'image')}: {counted(measured.lists, 'list')}, {measured.probes:,} of them "
        f"searched; recall@{RECALL_AT} {measured.recall:.3f} against exact search"
    )
    emit(asdict(measured), as_json)


@click.command()
@click.argument("gallery", type=PATH)
@click.option("--query", type=PATH, metavar="IMAGE", help="Image to search for.")
@click.option(
    "--attribute",
    "attributes",
    multiple=True,
    metavar="NAME[=WEIGHT]",
    help="Attribute of the query; may be given several times; a weight multiplies its cosine.",
)
@click.option(
    "--value", "values", multiple=True, metavar="ATTRIBUTE=VALUE", help="Value to search for; several: all of them."
)
@click.option("--not", "excluded", multiple=True, metavar="ATTRIBUTE=VALUE", help="Value that images must not have.")
@click.option(
    "--where", metavar="CONDITION", help="Search only among images with, e.g., \"brand = 'X' and price < 50\"."
)
@click.option("--top", default=10, show_default=True, type=click.IntRange(1), help="Number of images to show.")
@click.option("--approximate", is_flag=True, help="Use the index or the vector store that `agman index` has made.")
@click.option("--absolute", is_flag=True, help="Show absolute paths.")
@click.option("--model", metavar="MODEL", help="The gallery's model, if it has moved.")
@json_option
def search(
    gallery: Path,
    query: Path | None,
    attributes: tuple[str, ...],
    values: tuple[str, ...],
    excluded: tuple[str, ...],
    absolute: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Find images of GALLERY by a picture, values or both.

    IMAGE itself is left out. Attributes say what is alike, values what the images show.
    """
    from pipeline.retrieval.gallery import Gallery
    from pipeline.retrieval.search import parse_attributes, run_search

    opened, weights = Gallery.open(gallery), parse_attributes(attributes)
    hits = run_search(opened, query, weights, values=values, excluded=excluded, **options)
    emit(show_hits(opened, hits, weights, (values, excluded), absolute=absolute), as_json)


def show_hits(
    gallery: Gallery,
    hits: list[Hit],
    weights: dict[str, float],
    asked: tuple[Sequence[str], Sequence[str]] = ((), ()),
    *,
    absolute: bool,
) -> dict[str, Any]:
    """Show a row for each hit of a search, which `asked` for wanted and excluded values; return them for --json."""
    from pipeline.evaluation.few import marked, meaning_for

    queries = [gallery.info.queries.get(name) for name in weights]
    names = [marked(name, count) for name, count in zip(weights, queries, strict=True)]
    values = [*asked[0], *(f"not {one}" for one in asked[1])]
    several = [*names, *map(printable, values)] if len(names) + len(values) > 1 else []
    shown = [*weights, *(one.partition("=")[0] for one in (*asked[0], *asked[1]))]
    labels = [", ".join(hit.labels[name] for name in dict.fromkeys(shown) if name in hit.labels) for hit in hits]
    paths = [gallery.path(hit.row) for hit in hits]
    rows = [
        [
            str(rank),
            f"{hit.score:.4f}",
            *(f"{one:.4f}" for one in [*hit.cosines, *(value.score for value in hit.values)] if several),
            *([printable(label)] if any(labels) else []),
            printable(path if absolute else hit.image, longest=2_000),
        ]
        for rank, (hit, label, path) in enumerate(zip(hits, labels, paths, strict=True), 1)
    ]
    weighted = [
        name if weight == 1 else f"{weight:g} × {name}" for name, weight in zip(names, weights.values(), strict=True)
    ]
    summed = " + ".join([*weighted, *([" and ".join(map(printable, values))] if values else [])])
    if values:
        title = f"best matches of {summed} ({'sum of cosines, plus probability' if names else 'probability'})"
    else:
        title = f"most similar under {summed} (sum of cosines)" if several else f"by {summed} (cosine)"
    show_table(title, ["rank", "score", *several, *(["label"] if any(labels) else []), "image"], rows)
    if not hits:
        say("no picture matches")
    for line in meaning_for(queries):
        say(line)
    return {
        "attributes": list(weights),
        "values": list(asked[0]),
        "excluded": list(asked[1]),
        "hits": [asdict(hit) | {"path": path} for hit, path in zip(hits, paths, strict=True)],
    }


@click.command()
@click.argument("model", type=MODEL)
@click.option(
    "--images",
    required=True,
    type=PATH_OR_URI,
    metavar="SOURCE",
    help="Folder of images, Parquet files, a prepared dataset, or a gallery of the same model.",
)
@click.option("--out", required=True, type=NEW_FILE, metavar="FILE", help="Table to write: .parquet or .csv.")
@click.option(
    "--attribute", "attributes", multiple=True, metavar="NAME", help="May be given several times; by default all."
)
@click.option(
    "--precision",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Give a value only where at least this share of such answers was right on validation; else leave it empty.",
)
@click.option(
    "--data", type=PATH_OR_URI, metavar="OUT", help="Make prototypes from this dataset, instead of the model's own."
)
@click.option("--overwrite", is_flag=True, help="Replace the file, if this command has written it before.")
@json_option
def tag(model: str, images: str | Path, out: Path, as_json: bool, **options: Any) -> None:
    """Name the most probable value of images under every attribute.

    A table has its calibrated probability, and the runner-up.
    """
    from pipeline.retrieval.tag import tag_images

    emit(show_tagged(tag_images(model, images, out, progress=progress_bar, **options)), as_json)


def show_tagged(tagged: Tagged) -> dict[str, Any]:
    """Show a row for every attribute, and the rejects; return the result for --json."""
    from pipeline.evaluation.few import FEW, is_few, marked

    result: dict[str, Any] = {"pictures": tagged.pictures, "rejects": tagged.rejects, "skipped": tagged.skipped}
    rows = []
    limited = any(one.threshold for one in tagged.attributes.values())
    few = False
    for name, one in tagged.attributes.items():
        coverage = one.values.total() / tagged.pictures
        frequent = [f"{printable(value)} {count:,}" for value, count in one.values.most_common(3)]
        row = [
            marked(name, one.namer.pictures) if limited else name,
            f"{one.values.total():,}",
            f"{100 * coverage:.1f}",
        ]
        if one.threshold:
            few |= is_few(one.namer.pictures)
            row += [f"{one.threshold.confidence:.3f}", f"{100 * one.threshold.coverage:.1f}"]
        rows.append([*row, ", ".join(frequent)])
        result |= {f"coverage/{name}": coverage, f"values/{name}": dict(one.values.most_common())}
    header = ["attribute", "named", "coverage, %", *(["from probability", "coverage on validation, %"] * limited)]
    show_table(f"values of {counted(tagged.pictures, 'picture')}", [*header, "most frequent"], rows)
    if few:
        say(f"few: a threshold from fewer than {FEW} validation pictures is unsure")
    for name in tagged.unnamed:
        say(f"note: values of {name} are not named: the prototypes' dataset has no labelled training pictures of it")
    if unsure := [name for name, one in tagged.attributes.items() if one.namer.temperature is None]:
        say(f"note: probabilities of {', '.join(unsure)} are left out: no validation labels to calibrate them on")
    if tagged.rejects:
        say(f"{counted(tagged.rejects, 'picture')} rejected, each named in {tagged.rejects_file}")
    if tagged.skipped:
        say(f"{counted(tagged.skipped, 'file')} skipped, not taken for pictures")
    say(f"table: {tagged.out.absolute()}")
    return result | {"out": str(tagged.out)}


@click.command()
@click.argument("gallery", type=PATH)
@click.option("--model", metavar="MODEL", help="The gallery's model, if it has moved.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0: all addresses.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="Port; 0: a free one.")
@click.option(
    "--replicas",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="Processes, one GPU each if there are GPUs.",
)
@click.option(
    "--max-batch",
    default=32,
    show_default=True,
    type=click.IntRange(1),
    help="Maximum images that are embedded together.",
)
@click.option(
    "--wait-ms",
    default=5.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Time that an image waits for others to join its batch, ms.",
)
@click.option(
    "--backend",
    default="torch",
    show_default=True,
    type=click.Choice(["torch", "onnx", "int8"]),
    help="What computes embeddings; onnx and int8 are for CPUs, and need --model DIR that `agman export` has written.",
)
@click.option("--keys", type=PATH, metavar="FILE", help="API keys that `agman key` has made; without one: 401.")
@click.option("--no-keys", is_flag=True, help="Let everybody in who can reach an address of other machines.")
@click.option(
    "--rate-limit",
    type=click.IntRange(1),
    metavar="N",
    help="Requests a minute for each key or, without keys, address; by default any number.",
)
def serve(gallery: Path, model: str | None, no_keys: bool, **options: Any) -> None:
    """Serve GALLERY over HTTP, with a page to search it.

    Ctrl-C stops it.
    """
    from pipeline.retrieval.gallery import Gallery

    Gallery.open(gallery)  # a wrong folder is refused before Ray Serve is imported
    from pipeline.serving.access import is_loopback

    if not (is_loopback(options["host"]) or options["keys"] or no_keys):
        raise InputError(
            f"--host {options['host']}: other machines could use it; give --keys FILE (`agman key NAME --keys FILE` "
            "makes a key), or --no-keys"
        )
    from pipeline.serving.run import Options, serve_until_stopped

    serve_until_stopped(gallery, model, Options(**options))


@click.command()
@click.argument("name")
@click.option("--keys", required=True, type=NEW_FILE, metavar="FILE", help="File of keys; it is made if it is missing.")
def key(name: str, keys: Path) -> None:
    """Make an API key for NAME, and show it once.

    FILE, for `agman serve --keys`, holds its SHA-256.
    """
    from pipeline.serving.keys import add_key

    click.echo(add_key(keys, name))
    say(f"{keys}: has a key of {name}; this is the only time that it is shown")
