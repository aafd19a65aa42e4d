import torch

from llamacli import masks


def test_causal_by_hand() -> None:
    assert [[masks.causal(q, k) for k in range(3)] for q in range(3)] == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]


def test_the_documentation_pages_sentence_has_55_of_100_pairs() -> None:
    assert sum(masks.causal(q, k) for q in range(10) for k in range(10)) == 55


def test_numbers_and_tensors_agree() -> None:
    tokens = [False, True, True, True]
    rule = masks.padded(masks.causal, lambda k: tokens[k])
    is_token = torch.tensor(tokens)
    query, key = torch.arange(4)[:, None], torch.arange(4)
    tensor = masks.padded(masks.causal, lambda k: is_token[k])(query, key)
    assert tensor.tolist() == [[rule(q, k) for k in range(4)] for q in range(4)]


def test_padding_is_hidden_from_tokens_and_sees_only_itself() -> None:
    rule = masks.padded(masks.causal, lambda k: k >= 2)
    assert [k for k in range(4) if rule(3, k)] == [2, 3]
    assert [k for k in range(4) if rule(1, k)] == [1]


def table(rule: masks.Predicate, queries: int, keys: int) -> list[list[bool]]:
    return [[bool(rule(q, k)) for k in range(keys)] for q in range(queries)]


def test_a_window_counts_the_token_itself() -> None:
    rule = masks.sliding_window(masks.causal, 2)
    assert table(rule, 4, 4) == [
        [True, False, False, False],
        [True, True, False, False],
        [False, True, True, False],
        [False, False, True, True],
    ]


def test_documents_in_one_row_do_not_see_each_other() -> None:
    rule = masks.packed(masks.causal, [0, 0, 1, 1].__getitem__)
    assert table(rule, 4, 4) == [
        [True, False, False, False],
        [True, True, False, False],
        [False, False, True, False],
        [False, False, True, True],
    ]


def test_a_prefix_sees_itself_in_both_directions() -> None:
    rule = masks.prefix_lm(masks.causal, lambda k: k < 2)
    assert table(rule, 4, 4) == [
        [True, True, False, False],
        [True, True, False, False],
        [True, True, True, False],
        [True, True, True, True],
    ]
