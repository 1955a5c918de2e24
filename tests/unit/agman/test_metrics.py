"""Metrics against rankings worked out by hand."""

import itertools

import pytest
import torch

import agman
import agman.metrics
from agman.metrics import (
    Retrieval,
    average_precision_at_r,
    chance_average_precision,
    mean_cosine,
    precision_at,
    recall_at,
    similarities,
)
from agman.triplet_metrics import score_triplets


def rank(scores, relevant, ks=(1, 2, 3), chunk=None):
    """Return the retrieval of one query whose candidates have these scores and relevances."""
    query = torch.tensor([[1.0]])
    candidates = torch.tensor(scores)[:, None]
    return agman.retrieval(query, candidates, torch.tensor([1]), torch.tensor(relevant), ks, chunk)


def test_average_precision_by_hand():
    # by falling score: hit, miss, hit, miss, hit. Precisions at the hits: 1/1, 2/3, 3/5
    result = rank([0.9, 0.5, 0.7, 0.1, 0.8], relevant=[1, 0, 1, 1, 0])
    assert result.average_precision.tolist() == pytest.approx([(1 + 2 / 3 + 3 / 5) / 3])
    assert result.relevant.tolist() == [3]
    assert {k: v.item() for k, v in result.precision.items()} == pytest.approx({1: 1, 2: 1 / 2, 3: 2 / 3})
    assert {k: v.item() for k, v in result.recall.items()} == pytest.approx({1: 1 / 3, 2: 1 / 3, 3: 2 / 3})


def test_a_query_without_relevant_candidates_scores_zero():
    result = rank([0.9, 0.5], relevant=[0, 0], ks=(1,))
    assert result.average_precision.tolist() == [0.0]
    assert result.recall[1].tolist() == result.precision[1].tolist() == [0.0]


def test_k_beyond_the_candidates_counts_the_missing_as_misses():
    result = rank([0.9, 0.5], relevant=[1, 1], ks=(10,))
    assert result.precision[10].item() == pytest.approx(2 / 10)
    assert result.recall[10].item() == pytest.approx(1.0)


def test_ties_rank_by_candidate_order():
    # all equal: the order given. Hit first: 1; hit last of three: 1/3
    assert rank([0.5] * 3, relevant=[1, 0, 0]).average_precision.item() == pytest.approx(1.0)
    assert rank([0.5] * 3, relevant=[0, 0, 1]).average_precision.item() == pytest.approx(1 / 3)


def test_equal_embeddings_tie_wherever_they_lie_in_the_product():
    one = torch.nn.functional.normalize(torch.randn(1, 257), dim=1)
    candidates = one.expand(1031, -1).contiguous()
    values = torch.zeros(1031, dtype=torch.int64)
    values[1030] = 7
    queries = torch.nn.functional.normalize(torch.randn(3, 257), dim=1)
    result = agman.retrieval(queries, candidates, torch.full((3,), 7), values)
    assert result.average_precision.tolist() == pytest.approx([1 / 1031] * 3)


def random_case(queries=13, candidates=37, width=5):
    generator = torch.Generator().manual_seed(4)
    return (
        torch.randn(queries, width, generator=generator),
        torch.randn(candidates, width, generator=generator),
        torch.randint(4, (queries,), generator=generator),
        torch.randint(4, (candidates,), generator=generator),
    )


def plain_average_precision(scores, hits):
    """Return the definition, a loop over ranks."""
    order = sorted(range(len(scores)), key=lambda c: -scores[c])
    found, total = 0, 0.0
    for rank_of, candidate in enumerate(order, start=1):
        if hits[candidate]:
            found += 1
            total += found / rank_of
    return total / max(found, 1)


def test_equals_the_definition_query_by_query():
    queries, candidates, query_values, candidate_values = random_case()
    result = agman.retrieval(queries, candidates, query_values, candidate_values)
    scores = queries.double() @ candidates.double().T
    expected = [
        plain_average_precision(row.tolist(), (candidate_values == value).tolist())
        for row, value in zip(scores, query_values, strict=True)
    ]
    assert result.average_precision.tolist() == pytest.approx(expected)


DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("chunk", [1, 5, 13])
def test_chunks_and_the_device_change_nothing(chunk, device):
    whole = agman.retrieval(*random_case(37, 1031, 257))
    cut = agman.retrieval(*(tensor.to(device) for tensor in random_case(37, 1031, 257)), chunk=chunk)
    assert torch.equal(whole.average_precision_at_r, cut.average_precision_at_r)
    assert torch.equal(whole.average_precision, cut.average_precision)
    assert torch.equal(whole.relevant, cut.relevant)
    for k in whole.precision:
        assert torch.equal(whole.precision[k], cut.precision[k])
        assert torch.equal(whole.recall[k], cut.recall[k])


def brute_force_chance(relevant, candidates):
    hits = [1] * relevant + [0] * (candidates - relevant)
    rankings = list(itertools.permutations(hits))
    return sum(plain_average_precision(range(0, -candidates, -1), ranking) for ranking in rankings) / len(rankings)


@pytest.mark.parametrize(("relevant", "candidates"), [(1, 1), (1, 2), (2, 2), (1, 5), (3, 5), (5, 5), (2, 7), (0, 4)])
def test_chance_equals_the_mean_over_all_rankings(relevant, candidates):
    chance = chance_average_precision(relevant, candidates).item()
    assert chance == pytest.approx(brute_force_chance(relevant, candidates))


def test_chance_of_many_queries_at_once():
    relevant = torch.tensor([0, 1, 3])
    expected = [chance_average_precision(int(r), 5).item() for r in relevant]
    assert chance_average_precision(relevant, 5).tolist() == pytest.approx(expected)


def result_of(average_precision, relevant, candidates):
    queries = torch.tensor(average_precision, dtype=torch.float64)
    at_1 = {1: queries / 2}
    return Retrieval(queries, queries / 8, at_1, {1: queries / 4}, torch.tensor(relevant), candidates)


def test_summary_by_hand():
    summary = agman.summarise(
        {
            "collar": result_of([1.0, 0.5, 0.0], relevant=[2, 1, 0], candidates=2),
            "sleeve": result_of([0.2], relevant=[1], candidates=1),
            "never asked": result_of([], relevant=[], candidates=3),
        }
    )
    assert summary["map"] == pytest.approx(1.7 / 4)  # over four queries
    assert summary["map_macro"] == pytest.approx((0.5 + 0.2) / 2)  # over two attributes
    assert summary["map_answerable"] == pytest.approx(1.7 / 3)  # one query has no relevant candidate
    assert summary["map_macro_answerable"] == pytest.approx((0.75 + 0.2) / 2)
    assert summary["map_at_r"] == pytest.approx(1.7 / 32) and summary["ceiling"] == 3 / 4
    assert summary["map/collar"] == pytest.approx(0.5) and summary["map/sleeve"] == pytest.approx(0.2)
    assert summary["p_at_1"] == pytest.approx(1.7 / 8) and summary["r_at_1"] == pytest.approx(1.7 / 16)
    # chance: both of two relevant 1; one of two (1 + 1/2)/2 = 3/4; none 0; one of one 1
    assert summary["chance"] == pytest.approx((1 + 0.75 + 0 + 1) / 4)
    assert summary["queries"] == 4 and summary["unanswerable"] == 1
    assert "map/never asked" not in summary


def test_nothing_to_summarise():
    with pytest.raises(ValueError, match="no queries"):
        agman.summarise({"collar": result_of([], relevant=[], candidates=3)})


def test_wrong_shapes_are_refused():
    queries, candidates, query_values, candidate_values = random_case()
    with pytest.raises(ValueError, match="Q×D and C×D"):
        agman.retrieval(queries[:, 1:], candidates, query_values, candidate_values)
    with pytest.raises(ValueError, match="13 queries and 37 candidates, but values"):
        agman.retrieval(queries, candidates, query_values[1:], candidate_values)


def test_queries_without_any_candidate_count_as_zero():
    queries, candidates, query_values, candidate_values = random_case()
    result = agman.retrieval(queries, candidates[:0], query_values, candidate_values[:0])
    assert result.average_precision.tolist() == result.recall[5].tolist() == [0.0] * 13
    summary = agman.summarise({"empty": result})
    assert (summary["map"], summary["chance"], summary["unanswerable"]) == (0, 0, 13)


@pytest.mark.parametrize("device", DEVICES)
def test_similarities_do_not_depend_on_the_order_of_the_sum(device):
    queries, candidates = (torch.randn(n, 509, generator=torch.Generator().manual_seed(n)) for n in (7, 31))
    queries = queries * torch.tensor([1e-3, 1.0, 1e3, 0.0, 1e-20, 1e15, 1 / 3])[:, None]
    order = torch.randperm(509, generator=torch.Generator().manual_seed(1))
    plain = similarities(queries, candidates)
    other = similarities(queries[:, order].to(device), candidates[:, order].to(device))
    assert torch.equal(plain, other.cpu())
    exact = (queries.double() @ candidates.double().T).float()
    lengths = queries.norm(dim=1)[:, None] * candidates.norm(dim=1)
    assert ((plain - exact).abs() <= 1e-7 * lengths).all()


def test_minus_zero_ties_with_zero():
    assert rank([-0.0, 0.0, -1.0], relevant=[1, 0, 0]).average_precision.item() == 1.0
    assert rank([0.0, -0.0, -1.0], relevant=[1, 0, 0]).average_precision.item() == 1.0
    assert rank([-1.0, -2.0, 3.0], relevant=[0, 1, 0]).average_precision.item() == pytest.approx(1 / 3)


HITS = torch.tensor([[1, 0, 1, 0, 1], [0, 0, 0, 0, 0], [0, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)


def test_scores_of_hits_by_hand():
    assert agman.metrics.average_precision(HITS).tolist() == pytest.approx(
        [(1 + 2 / 3 + 3 / 5) / 3, 0, (1 / 2 + 2 / 3) / 2, 1]
    )
    # R = 3: ranks 1 to 3; R = 2: ranks 1 and 2
    assert average_precision_at_r(HITS).tolist() == pytest.approx([(1 + 2 / 3) / 3, 0, (1 / 2) / 2, 1])
    assert precision_at(HITS, 2).tolist() == [1 / 2, 0, 1 / 2, 1]
    assert recall_at(HITS, 2).tolist() == pytest.approx([1 / 3, 0, 1 / 2, 2 / 5])
    assert precision_at(HITS, 10).tolist() == pytest.approx([3 / 10, 0, 2 / 10, 5 / 10])
    assert recall_at(HITS, 10).tolist() == [1, 0, 1, 1]


def test_the_working_set_is_bounded_whatever_the_number_of_candidates():
    from agman import metrics

    assert metrics.WORKING_BYTES <= 256 * 2**20
    assert metrics.WORKING_BYTES // (metrics.BYTES_OF_A_PAIR * 22_100) >= 32, "so few at a time would be slow"


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 1e30])
def test_embeddings_that_cannot_be_ranked_are_refused_by_name(bad):
    queries, candidates, *values = random_case()
    queries[3, 1] = bad
    with pytest.raises(ValueError, match="query embeddings must be finite; row 3"):
        agman.retrieval(queries, candidates, *values)
    with pytest.raises(ValueError, match="candidate embeddings must be finite; row 3"):
        agman.retrieval(candidates, queries, *reversed(values))
    with pytest.raises(ValueError, match="negatives must be finite; row 3"):
        score_triplets(candidates[:13], candidates[:13], queries)


def test_other_bad_input_is_refused():
    queries, candidates, query_values, candidate_values = random_case()
    with pytest.raises(ValueError, match=r"values must be integers, not torch\.float32"):
        agman.retrieval(queries, candidates, query_values.float(), candidate_values)
    with pytest.raises(ValueError, match="every k must be"):
        agman.retrieval(queries, candidates, query_values, candidate_values, ks=(0, 1))
    with pytest.raises(ValueError, match="k must be at least 1, not 0"):
        precision_at(HITS, 0)
    with pytest.raises(ValueError, match="Q×C bool"):
        agman.metrics.average_precision(HITS.long())
    with pytest.raises(ValueError, match="B×D with B >= 1"):
        score_triplets(queries[:0], queries[:0], queries[:0])


def test_the_mean_cosine_is_that_of_all_pairs_of_one_attribute() -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.nn.functional.normalize(torch.randn(8, 5, generator=generator), dim=1)
    attributes = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2])  # the last has no other of its attribute
    weighted = 0.0
    for rows in ([0, 1, 2], [3, 4, 5, 6]):
        cosines = [float(embeddings[i] @ embeddings[j]) for i in rows for j in rows if i != j]
        weighted += len(rows) * sum(cosines) / len(cosines)
    assert mean_cosine(embeddings, attributes) == pytest.approx(weighted / 7, abs=1e-6)
    assert mean_cosine(embeddings[:1].expand(4, 5), attributes[:4] * 0) == pytest.approx(1, abs=1e-6)
    assert mean_cosine(embeddings[:1], attributes[:1]) == 0


def test_chance_is_also_that_of_each_attribute() -> None:
    generator = torch.Generator().manual_seed(1)
    results = {
        name: agman.retrieval(*(torch.randn(n, 3, generator=generator) for n in (queries, 13)), *values)
        for name, queries, values in (
            ("collar", 7, (torch.arange(7) % 2, torch.arange(13) % 2)),
            ("sleeve", 5, (torch.arange(5) % 3, torch.arange(13) % 3)),
        )
    }
    summary = agman.summarise(results)
    for name, result in results.items():
        expected = chance_average_precision(result.relevant, result.candidates).mean()
        assert summary[f"chance/{name}"] == pytest.approx(float(expected))
    together = (7 * summary["chance/collar"] + 5 * summary["chance/sleeve"]) / 12
    assert summary["chance"] == pytest.approx(together)
