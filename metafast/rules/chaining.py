"""Rules made of several."""

from __future__ import annotations

from dataclasses import replace

from metafast.rules.rule import HyperValue, Link, Rule

#: csrc/rules/rule.h has room for so many.
MOST_LINKS = 8


def chain(*rules: Rule) -> Rule:
    """One rule that does what each of ``rules`` does, one after the other: ``chain(clip_norm(1.0), Adam(0.01))``.

    What changes gradients stands in front of the optimiser, of which there is one; what changes parameters behind it.
    Hyper-parameters keep their names; a second one of a name gets a number (``clip_norm_2``).

    Raises:
        TypeError: an argument that is no rule.
        ValueError: no optimiser, or several; a rule on the wrong side of it; more than eight rules.
    """
    links: list[Link] = []
    hypers: dict[str, HyperValue | None] = {}
    learn: list[str] = []
    for rule in rules:
        if not isinstance(rule, Rule):
            raise TypeError(
                f"chain takes rules such as mf.clip_norm(1.0) and mf.Adam(); it got a {type(rule).__name__}"
            )
        names = {name: _free(name, hypers) for name in rule.hypers}
        hypers |= {names[name]: value for name, value in rule.hypers.items()}
        learn += [names[name] for name in rule.learn]
        links += [replace(link, hypers={o: names[n] for o, n in link.hypers.items()}) for link in rule.links]
    optimisers = [rule for rule in rules if rule.optimises]
    if len(optimisers) != 1:
        raise ValueError(
            f"chain needs one optimiser such as mf.SGD() or mf.Adam(); it got {len(optimisers)}: "
            f"{', '.join(map(repr, rules))}"
        )
    places = [link.place for link in links]
    for link in links[places.index(0) :]:
        if link.place < 0:
            raise ValueError(f"chain: {link.called} changes gradients, so it must stand in front of the optimiser")
    for link in links[: places.index(0)]:
        if link.place > 0:
            raise ValueError(f"chain: {link.called} changes parameters, so it must stand behind the optimiser")
    if len(links) > MOST_LINKS:
        raise ValueError(f"chain takes at most {MOST_LINKS} rules; it got {len(links)}")
    return Rule(tuple(links), hypers, optimisers[0].per_step, tuple(learn), optimisers[0].default_lr)


def _free(name: str, taken: dict[str, HyperValue | None]) -> str:
    if name not in taken:
        return name
    return next(f"{name}_{i}" for i in range(2, MOST_LINKS + 2) if f"{name}_{i}" not in taken)
