"""What a notebook sees: settings of its profile, data, figures, and the ledger of its claims."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from IPython.display import Markdown, display
from matplotlib.figure import Figure

from companion import data
from companion.chapters import claims, figures, ledger, paths, profiles, provenance, results
from companion.chapters.claims import LedgerError
from companion.chapters.tables import cell
from companion.errors import CompanionError


class Chapter:
    """One run of one chapter at one profile; CompanionError for an unknown name or a bad claims file."""

    def __init__(self, name: str, *, profile: str, seed: int) -> None:
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise CompanionError(f"seed {seed!r}: expected a whole number from 0 up")
        self.profile = profiles.get(profile)
        self.claims = {claim.id: claim for claim in claims.load(name).claims}
        self.name, self.seed = name, seed
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._parameters: dict[str, Any] = {}
        self._cards: dict[tuple[str, str, str | None], dict[str, Any]] = {}
        self._entries: dict[str, ledger.Entry] = {}
        self._series: dict[str, Any] = {}
        # Read before anything is computed: the source may be edited while the chapter runs.
        known = paths.notebook(name).is_file()  # not where only the package and one notebook are (Colab)
        self._source = provenance.commit() | {"digest": provenance.digest(name, profile) if known else "unknown"}
        self._set_up()

    def _set_up(self) -> None:
        torch.set_num_threads(self.profile.threads)
        cuda = self.device.type == "cuda"
        if cuda:  # some kernels have no deterministic form there
            torch.use_deterministic_algorithms(True, warn_only=True)
        else:  # the same switch, without the seconds that importing the compiler's settings takes
            torch.set_deterministic_debug_mode("error")
        torch.set_float32_matmul_precision("high" if cuda else "highest")  # "high" allows TF32
        figures.style()

    def settings(self, *, smoke: Mapping[str, Any], cpu: Mapping[str, Any], gpu: Mapping[str, Any]) -> SimpleNamespace:
        """Return this profile's settings; raises CompanionError unless all three name the same things."""
        columns = {"smoke": smoke, "cpu": cpu, "gpu": gpu}
        every = set().union(*columns.values())
        if lacking := {p: sorted(every - set(c)) for p, c in columns.items() if every - set(c)}:
            gaps = "; ".join(f"{p} lacks {', '.join(names)}" for p, names in lacking.items())
            raise CompanionError(f"settings of the three profiles must have the same names: {gaps}")
        chosen = dict(columns[self.profile.name])
        self._parameters = provenance.plain(chosen)
        return SimpleNamespace(**chosen)

    def load(self, name: str, split: str = "train", *, fallback: str | None = None, **options: Any) -> data.Dataset:
        """Load a data set onto the chapter's device and put its card into the provenance.

        At smoke only embedded sets are read: `fallback` takes the place of any other. A stand-in is announced
        in the output. Raises CompanionError where neither the set nor a fallback can be had.
        """
        withheld = "The smoke profile reads embedded data only." if self.profile.name == "smoke" else None
        found = data.load(name, split, fallback=fallback, withheld=withheld, device=self.device, **options)
        card = provenance.data_card(found.card, split)
        if card["stands_in_for"] and card["stands_in_for"] not in {c["stands_in_for"] for c in self._cards.values()}:
            notice = f"**Stand-in data: {card['name']} for {name}.** {found.card.note}"
            display(Markdown(notice), metadata={"companion": {"stand_in": name}})
        self._cards[card["name"], split, card["stands_in_for"]] = card
        return found

    def show(self, figure: Figure, name: str, *, alt: str, caption: str, answers: str | None = None) -> None:
        """Save, display and close a figure; ValueError for missing or lazy words (see `figures.show`)."""
        folder = paths.figures_dir(self.name, self.profile.name)
        figures.show(figure, folder, name, alt=alt, caption=caption, answers=answers)

    def claim(self, claim_id: str, /, *, control: Mapping[str, Any] | None = None, **measures: Any) -> None:
        """Judge a claim by its measured values (a number or one per seed), print the verdict.

        `control` holds the values of the wrong twin, which must fail. LedgerError: see `ledger.evaluate`.
        """
        if claim_id not in self.claims:
            raise LedgerError(f"no claim {claim_id} in {self.name}: the file has {', '.join(self.claims)}")
        loaded = [(card["name"], card["stands_in_for"]) for card in self._cards.values()]
        entry = ledger.evaluate(self.claims[claim_id], measures, control, profile=self.profile.name, loaded=loaded)
        self._entries[claim_id] = entry
        print(entry["verdict"])

    def keep(self, **series: Any) -> None:
        """Keep numbers that no rule judges (a curve, a table) in the results, for `recorded` to redraw."""
        for name, values in series.items():
            kept = torch.as_tensor(values, device="cpu")
            if kept.is_floating_point():
                kept = kept.to(torch.float64, copy=True).apply_(provenance.settled)
            self._series[name] = provenance.plain(kept.tolist())

    def recorded(self, profile: str = "gpu") -> results.Result | None:
        """Return the committed results of this chapter at `profile`, or None if none were recorded."""
        return results.recorded(self.name, profile)

    def paper_scale(self, what: str) -> results.Result | None:
        """Return the results recorded at gpu, which runs `what`; display their origin, or that there are none."""
        found = self.recorded("gpu")
        if found:
            origin = found["provenance"]
            words = f"Recorded on {origin['device']}, commit `{origin['commit'][:10]}`."
        else:
            commands = f"`companion run {self.name} --profile gpu` and `companion record {self.name} --profile gpu`"
            words = (
                f"**Needs gpu.** The `gpu` profile ({what}) has not been recorded yet. {commands} fill this section."
            )
        display(Markdown(words))
        return found

    def entries(self) -> list[ledger.Entry]:
        """Return the computed entries in the order of the claims file; LedgerError if one is missing."""
        if lacking := [i for i, c in self.claims.items() if not c.not_attempted and i not in self._entries]:
            raise LedgerError(f"{self.name}: no computed status for {', '.join(lacking)}: call chapter.claim for each")
        return [
            ledger.not_attempted(claim) if claim.not_attempted else self._entries[claim_id]
            for claim_id, claim in self.claims.items()
        ]

    def ledger(self) -> None:
        """Display every claim's box and a line of totals; raises LedgerError if a claim has no status."""
        entries = self.entries()
        for entry in entries:
            words = {
                "claim": entry["id"],
                "status": entry["status"],
                "title": entry["title"],
                "kind": entry["kind"],
            }
            display(Markdown(box(entry)), metadata={"companion": words})
        totals = {s: n for s, n in results.counts({"claims": entries}).items() if n}
        line = ", ".join(f"{n} {status}" for status, n in totals.items())
        display(Markdown(f"**{len(entries)} claims:** {line}"), metadata={"companion": {"summary": totals}})

    def finish(self) -> None:
        """Write the results; LedgerError if a claim has no status (nothing written) or a control passed."""
        entries = self.entries()
        results.write(
            {
                "chapter": self.name,
                "profile": self.profile.name,
                "claims": entries,
                "series": dict(sorted(self._series.items())),
                "provenance": self._source
                | provenance.machine(self.device)
                | {
                    "seed": self.seed,
                    "parameters": self._parameters,
                    "data": list(self._cards.values()),
                },
            }
        )
        if toothless := [e["id"] for e in entries if e["control"] and e["control"]["passes"]]:
            raise LedgerError(
                f"{self.name}: the control of {', '.join(toothless)} passes its rule, so it decides nothing"
            )


def _paper(value: str | float | None) -> str:
    return "not seen" if value is None else f"{value:g}" if isinstance(value, float) else value


def _named(words: Mapping[str, str]) -> str:
    return "; ".join(f"{name} = {value}" for name, value in words.items())


def box(entry: ledger.Entry) -> str:
    """Return a claim as Markdown: a title paragraph ending in the status, statement, table, reason."""
    rows: list[tuple[str, str]] = [("Paper", _paper(entry["paper"]))]
    if entry["words"]:
        rows.append(("Ours", _named(entry["words"])))
    if entry["rule"]:
        rows.append(("Rule", "; ".join(entry["rule"])))
    if entry["direction"]:
        rows.append(("Direction only if", "; ".join(entry["direction"])))
    if control := entry["control"]:
        outcome = "**passes, so the rule decides nothing**" if control["passes"] else "fails, as it must"
        rows.append((f"Control: {control['what']}", f"{_named(control['words'])}: {outcome}"))
    table = [f"| {cell(left)} | {cell(right)} |" for left, right in rows]
    what: Sequence[str] = [f"- *{name}*: {m['what']}" for name, m in entry["measured"].items()]
    parts = [
        f"**{entry['id']} · {entry['title']} · {entry['status']}**",
        f"*{entry['kind'].capitalize()}, {entry['where']}.* {entry['statement']}",
        "\n".join(["| | Value |", "|:---|:---|", *table]),
        "\n".join(what),
        f"*Why this rule:* {entry['reason']}" if entry["reason"] else "",
        f"*Note:* {entry['note']}." if entry["note"] else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
