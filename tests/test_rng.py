from wcse.rng import node_key


def test_golden_keys():
    assert node_key(0, "p", ()) == 0xE05AE26CB86647BA
    assert node_key(0, "gsm/1", (0,)) == 0x2D5FCA1818C7A35F
    assert node_key(7, "gsm/1", (3, 0, 12)) == 0x0D939D449B294725
    assert node_key(-1, "Ünï", (0,)) == 0x2C2A2B9AA75EB516


def test_every_part_counts():
    keys = {
        node_key(seed, problem, path)
        for seed in (0, 1)
        for problem in ("a", "b")
        for path in ((), (0,), (1,), (0, 1), (0, 0, 1), (12,), (1, 2))
    }
    assert len(keys) == 2 * 2 * 7
    assert all(0 <= key < 2**64 for key in keys)
