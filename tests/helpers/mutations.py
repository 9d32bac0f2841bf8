"""Random mutations of JSON, as from damaged or forged files."""

import copy
import math

JUNK = [None, True, -1, 0, 3, 10**400, 10**12, 0.5, math.nan, math.inf, -math.inf, "", "cat"]


JUNK += ["digits", "mixture", "mlp", "a\0b", "../x", [], [1], [1, "a"], [[1]], {}, {"a": 1}]


def places(data, path=()):
    items = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


def mutate(data, rng):
    data = copy.deepcopy(data)
    for _ in range(rng.randint(1, 2)):
        *path, last = rng.choice(list(places(data)))
        place = data
        for key in path:
            place = place[key]
        chance = rng.random()
        if chance < 0.7:
            place[last] = copy.deepcopy(rng.choice(JUNK))
        elif chance < 0.85:
            del place[last]
        elif isinstance(place, dict):
            place[f"{last}_"] = rng.choice(JUNK)
    return data
