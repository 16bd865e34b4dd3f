"""Pearson's chi-square test."""

import math

Z = 3.719  # one in 10,000 of correct samplers exceeds it


def fits(counts: list[int], probabilities: list[float]) -> bool:
    """Whether counts agree with probabilities. Outcomes expected fewer than 5 times are put
    together; one that is impossible must not occur."""
    total = sum(counts)
    statistic, cells = 0.0, 0
    rest = [0.0, 0.0]
    for count, probability in zip(counts, probabilities, strict=True):
        if probability == 0.0 and count:
            return False
        expected = probability * total
        if expected < 5:
            rest[0] += count
            rest[1] += expected
            continue
        statistic += (count - expected) ** 2 / expected
        cells += 1
    if rest[1] > 0:
        statistic += (rest[0] - rest[1]) ** 2 / rest[1]
        cells += 1
    k = cells - 1
    assert k > 0, "nothing to compare"
    # quantile of chi-square with k degrees of freedom (Wilson and Hilferty, 1931)
    limit = k * (1 - 2 / (9 * k) + Z * math.sqrt(2 / (9 * k))) ** 3
    return statistic <= limit
