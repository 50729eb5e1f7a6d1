"""The boxes of the ledger as Markdown."""

from companion.chapters.chapter import box

SLOPE = {"slope": [3.98, 4.02], "control": {"slope": 2.0}}


def entries(start):
    """The entries of C1, C2 and C3 after a smoke run."""
    chapter = start()
    chapter.claim("C1", **SLOPE)
    chapter.claim("C2", base=1, noisy=0.5)
    return chapter.entries()


def test_the_ledger_shows_every_box_and_the_totals(start, displayed):
    chapter = start()
    chapter.claim("C1", **SLOPE)
    chapter.claim("C2", base=1.0, noisy=0.5)
    chapter.ledger()
    *boxes, (line, totals) = displayed
    first = {"claim": "C1", "status": "verified", "title": "The slope is four", "kind": "theorem"}
    assert boxes[0][1] == first
    assert [(words["claim"], words["status"]) for _, words in boxes[1:]] == [
        ("C2", "needs cpu"),
        ("C3", "not attempted"),
    ]
    assert line == "**3 claims:** 1 verified, 1 needs cpu, 1 not attempted"
    assert totals == {"summary": {"verified": 1, "needs cpu": 1, "not attempted": 1}}


def test_a_box_says_all_in_words(start):
    text = box(entries(start)[0])
    title, *rest = text.split("\n\n")
    assert title == "**C1 · The slope is four · verified**"
    assert rest[0] == "*Theorem, Theorem 1.* The remainder vanishes with the fourth power of $\\sigma$."
    assert rest[1].splitlines()[2:] == [
        "| Paper | 4 |",
        "| Ours | slope = 4 ± 0.028 (n=2) |",
        "| Rule | slope in [3.7, 4.3] (mean) |",
        "| Control: the remainder without its second part | slope = 2: fails, as it must |",
    ]
    assert "*slope*: log-log slope" in text and "*Why this rule:* finite noise" in text


def test_a_bar_or_a_line_break_does_not_end_a_table_cell(start):
    entry = entries(start)[0]
    entry["control"]["what"] = "|a| without\nits bars"
    assert "| Control: \\|a\\| without its bars | slope" in box(entry)


def test_boxes_of_the_undecided_and_the_unattempted(start):
    _, undecided, unattempted = entries(start)
    assert "*Note:* the smoke profile is too small to decide it." in box(undecided)
    text = box(unattempted)
    assert "| Paper | not seen |" in text and "*Note:* the paper gives no learning rate." in text
    assert "Ours" not in text and "Rule" not in text
