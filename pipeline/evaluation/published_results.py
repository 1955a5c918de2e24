"""Published results on the datasets that `agman prep` reads, with their sources.

Numbers are as printed: MAP and accuracy in percent, losses without a factor. MAP is query-weighted (the mean over all
queries of all attributes). No number here was measured with this code.
"""

from __future__ import annotations

from dataclasses import dataclass

from data_prep.layouts import darn, deepfashion, fashionai, zappos50k
from data_prep.tables import ASEN_SPLIT, CSN_SPLIT, DatasetInfo
from data_prep.words import counted

AG_MLAN = "Xiao & Yamasaki, first version (AG-MLAN)"
AG_MAN = "Xiao & Yamasaki, IEEE Access (AG-MAN), abstract"
RPF = "RPF, SIGIR 2023"
DUAL_ATTENTION = "two-stage dual attention, CVIU 2025"
REPEATED = 0.01
"""Fraction of the queries and candidates that may be missing in the official split: its files repeat some."""


@dataclass(frozen=True, slots=True)
class Result:
    """Results of one system on one benchmark."""

    system: str
    source: str
    overall: float
    """MAP over all queries, or accuracy over all triplets; percent."""
    of_attributes: tuple[float, ...] = ()
    """MAP of each attribute in the benchmark's order, percent; empty if only the overall MAP is published."""
    loss: float | None = None
    """Average loss over all triplets, if published."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A dataset and split with published results."""

    layout: str
    name: str
    attributes: tuple[str, ...]
    """Names as in dataset.json, in the order of the table's columns."""
    results: tuple[Result, ...]
    queries: int = 0
    """Queries of the official test split; 0 if triplets are scored and not rankings."""
    candidates: int = 0
    """Candidates of the official test split."""

    @property
    def split_origin(self) -> str:
        """Origin of the split of the results."""
        return CSN_SPLIT if self.of_triplets else ASEN_SPLIT

    @property
    def of_triplets(self) -> bool:
        """Whether triplet accuracy is published, and not MAP."""
        return not self.queries

    def difference_to(self, info: DatasetInfo, split: str, drawn: bool) -> str | None:
        """Return why these results cannot be compared with results on this dataset and split; None if they can.

        The official split is recognised by its origin; that of a dataset of an earlier version, by its size. Queries
        and candidates whose pictures are lost count, because the files have them.
        """
        if drawn:
            return "of photographs, and these pictures are drawn"
        if split != "test":
            return "of the test split"
        if self.of_triplets:
            return None if info.given_triplets else "of CSN's triplet lists"
        if info.split_origin not in ("", self.split_origin):
            return f"of {self.split_origin} split, and this one is {info.split_origin}"
        lost = info.lost.get("test", {})
        queries, candidates = (
            counts["test"] + lost.get(what, 0)
            for what, counts in {"queries": info.queries, "candidates": info.candidates}.items()
        )
        pairs = ((queries, self.queries), (candidates, self.candidates))
        if all(abs(ours - official) <= REPEATED * official for ours, official in pairs):
            return None
        return (
            f"of the official split, {counted(self.queries, 'query')} and {counted(self.candidates, 'candidate')}, "
            f"and this one has {queries:,} and {candidates:,}"
        )

    @property
    def sources(self) -> str:
        """The sources of the results, each once."""
        return "; ".join(dict.fromkeys(result.source for result in self.results))


FASHIONAI = Benchmark(
    layout="fashionai",
    name="FashionAI",
    attributes=tuple(fashionai.ATTRIBUTES),
    queries=3_600,
    candidates=14_400,
    results=(
        Result("CSN", f"{AG_MLAN}, Table 1", 50.8043,
               (59.5852, 43.9943, 42.8203, 62.8021, 67.5715, 48.1033, 41.7291, 55.2886)),
        Result("ASENet_V2", f"{AG_MLAN}, Table 1", 60.7551,
               (64.5731, 54.9630, 51.7645, 64.4973, 71.9256, 66.7201, 60.2929, 60.8307)),
        Result("AttnFashion", f"{AG_MLAN}, Table 1", 55.3646,
               (61.9057, 45.8526, 45.8116, 60.6013, 70.4638, 62.7362, 52.0484, 59.5861)),
        Result("ISLN", f"{AG_MLAN}, Table 1", 61.4612,
               (65.3194, 55.6850, 52.6229, 66.4398, 71.4715, 66.6788, 61.1109, 61.1696)),
        Result("AG-MLAN", f"{AG_MLAN}, Table 1", 62.9361,
               (65.1933, 56.4381, 53.9879, 70.3412, 72.2916, 67.3052, 63.4835, 62.6355)),
        Result("AG-MAN", AG_MAN, 62.8788),
        Result("RPF", RPF, 70.11),
        Result("dual attention", DUAL_ATTENTION, 66.01),
    ),
)  # fmt: skip
DEEPFASHION = Benchmark(
    layout="deepfashion",
    name="DeepFashion",
    attributes=deepfashion.TYPE_NAMES,  # the paper prints "Pant-related" over part-related
    queries=5_525,
    candidates=22_100,
    results=(
        Result("CSN", f"{AG_MLAN}, Table 2", 8.0747, (14.4546, 6.5021, 11.2555, 4.7751, 3.4673)),
        Result("ASENet_V2", f"{AG_MLAN}, Table 2", 8.6704, (15.5168, 7.1855, 11.5066, 5.5220, 3.6514)),
        Result("AttnFashion", f"{AG_MLAN}, Table 2", 6.8060, (11.8423, 5.7248, 8.6115, 4.0904, 3.2329)),
        Result("ISLN", f"{AG_MLAN}, Table 2", 8.6033, (14.9985, 7.1098, 11.7784, 5.4627, 3.6797)),
        Result("AG-MLAN", f"{AG_MLAN}, Table 2", 8.8754, (15.5193, 7.1582, 12.2916, 5.6928, 3.7986)),
        Result("AG-MAN", AG_MAN, 8.9804),
        Result("RPF", RPF, 10.22),
    ),
)
DARN = Benchmark(
    layout="darn",
    name="DARN",
    attributes=tuple(darn.SIZES),
    queries=4_293,
    candidates=17_168,
    results=(Result("RPF", RPF, 58.80),),
)
ZAPPOS50K = Benchmark(
    layout="zappos50k",
    name="Zappos50k",
    attributes=tuple(zappos50k.CONDITIONS),
    results=(
        Result("CSN", f"{AG_MLAN}, Table 3", 93.14, loss=0.0393),
        Result("ASENet_V2", f"{AG_MLAN}, Table 3", 92.54, loss=0.0430),
        Result("AttnFashion", f"{AG_MLAN}, Table 3", 91.37, loss=0.0664),
        Result("ISLN", f"{AG_MLAN}, Table 3", 92.59, loss=0.0426),
        Result("AG-MLAN", f"{AG_MLAN}, Table 3", 93.32, loss=0.0390),
        Result("AG-MAN", AG_MAN, 93.32),
    ),
)
BENCHMARKS = (FASHIONAI, DEEPFASHION, DARN, ZAPPOS50K)


def benchmark_of(info: DatasetInfo) -> Benchmark | None:
    """Return the benchmark of this layout with exactly these attributes, or None if no results are published."""
    of_layout = (one for one in BENCHMARKS if one.layout == info.layout)
    return next((one for one in of_layout if list(one.attributes) == info.attribute_names), None)
