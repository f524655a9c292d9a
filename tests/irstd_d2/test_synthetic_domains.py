from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loops import for_every

from irstd_d2.synthetic.domains import FORMATS, DomainSequence, ImagingDomain, domain_table, small_size


def test_formats_are_the_real_ones(shared_dir):
    """Pairs of platform and band as often as in the real table, and every format of some weight."""
    rows = (shared_dir / "data" / "wideirstd_metadata.tsv").read_text().splitlines()
    fields = [row.split("\t") for row in rows]
    assert {pair: sum(formats.values()) for pair, formats in FORMATS.items()} == Counter((f[1], f[2]) for f in fields)
    for (*pair, width, height), count in Counter((f[1], f[2], int(f[3]), int(f[4])) for f in fields).items():
        if count >= 20:
            assert FORMATS[tuple(pair)][width, height] == count


@for_every(
    ("size", "main_side", "expected"),
    [
        ((1024, 1024), 1024, (128, 128)),
        ((1024, 740), 1024, (136, 96)),  # the shorter side is raised to 96, the longer goes with it
        ((640, 512), 512, (160, 128)),
        ((512, 512), 1024, (96, 96)),
        ((1024, 1024), 512, (192, 192)),
        ((418, 100), 512, (192, 96)),
    ],
)
def test_small_size(size, main_side, expected):
    assert small_size(*size, main_side) == expected


@for_every("size", ["small", "real", (160, 128)])
def test_real_balance_keeps_the_real_shares(size):
    shares = Counter()
    for domain, probability in domain_table(size, "real").items():
        shares[domain.platform, domain.band] += probability
        if size == "small":
            assert all(96 <= side <= 192 and side % 8 == 0 for side in (domain.width, domain.height))
        elif size != "real":
            assert (domain.width, domain.height) == size
    assert shares["Space", "NIR"] == pytest.approx(5787 / 8851)
    assert shares["Land", "LWIR"] == pytest.approx(1599 / 8851)
    assert sum(shares.values()) == pytest.approx(1)


def test_uniform_balance_and_dense_sets():
    table = domain_table("real", "uniform")
    assert table[ImagingDomain("Space", "SWIR", 512, 512)] == pytest.approx(0.25)
    assert table[ImagingDomain("Space", "NIR", 1024, 1024)] == pytest.approx(0.25 * 4800 / 5787)
    dense = domain_table("small", "real", dense=True)
    assert {(domain.platform, domain.band) for domain in dense} == {("Land", "LWIR")}
    assert sum(dense.values()) == pytest.approx(1)


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(40, 400), start=st.sampled_from([0, 1 << 24]))
def test_any_number_of_images_keeps_the_proportions(seed, count, start):
    sequence = DomainSequence(domain_table("small", "real"), seed)
    drawn = [sequence(start + i) for i in range(count)]
    space = sum(domain.platform == "Space" for domain, _ in drawn)
    # Independent draws would leave a standard deviation of 0.47 sqrt(count): 9.5 images of 400. Over all starts the two
    # sequences reach 4.75 and 3.6 (every start at which a point meets an edge was tried, up to 150 images).
    assert abs(space - count * (5787 + 21) / 8851) <= 5
    assert abs(sum(chance < 0.6 for _, chance in drawn) - 0.6 * count) <= 5
    assert all(0 <= chance < 1 for _, chance in drawn)


def test_both_numbers_are_spread_together():
    sequence = DomainSequence(domain_table("small", "real"), 3)
    land = np.array([chance for domain, chance in map(sequence, range(2000)) if domain.platform == "Land"])
    assert abs(len(land) - 361) <= 5
    assert abs((land < 0.6).mean() - 0.6) < 0.03
