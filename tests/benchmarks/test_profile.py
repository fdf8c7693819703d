"""Where a step's time goes: operations are sorted into kinds of work, and nothing is lost between them."""

import pytest

from benchmarks.profile import breakdown_of, table


@pytest.fixture
def breakdown(monkeypatch):
    monkeypatch.setattr("benchmarks.profile.square_gflops", lambda: 100.0)
    monkeypatch.setattr("benchmarks.profile.copy_gb_per_second", lambda: 10.0)
    events = [
        ("aten::mm", [[1000, 500], [500, 200]], 4, 8.0),
        ("aten::addmm", [[1000, 200], [1000, 16], [16, 200], [], [], [1000, 200]], 2, 4.0),
        ("lorakeet::attention", [[1000, 8, 64]], 2, 6.0),
        ("lorakeet::linear_4bit", [[1000, 500]], 2, 2.0),
        ("aten::copy_", [[1000, 200]], 2, 3.0),
        ("aten::_fused_adamw_", [], 2, 1.0),
        ("cpp_fused_silu_0", [], 2, 10.0),
    ]
    return breakdown_of(events, step_milliseconds=20.0, num_steps=2, r=16)


def test_every_millisecond_of_a_step_has_a_name(breakdown):
    parts = {part.name: part.milliseconds for part in breakdown.parts}
    assert parts == {
        "products with weights": 4.0,
        "products with A and B": 2.0,
        "attention": 3.0,
        "quantised products": 1.0,
        "copies": 1.5,
        "optimizer and clipping": 0.5,
        "norms, rotary positions, SwiGLU, loss": 5.0,
        "Python, launching, waiting": 3.0,
    }
    assert sum(parts.values()) == pytest.approx(breakdown.step_milliseconds)


def test_products_have_their_rate_by_shape(breakdown):
    assert [shape.name for shape in breakdown.shapes] == ["mm 1000 × 500 × 200", "addmm 1000 × 16 × 200"]
    assert breakdown.shapes[0].gflops == pytest.approx(4 * 2 * 1000 * 500 * 200 / 8e-3 / 1e9)
    assert breakdown.peak_gflops == 100.0
    assert "| &nbsp;&nbsp;mm 1000 × 500 × 200 | 4 | 20% | 100 | 100% |" in table(breakdown)
