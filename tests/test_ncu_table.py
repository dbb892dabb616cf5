"""`benchmarks/ncu_table.py` on reports made by hand."""

import csv
import io

import ncu_table
import pytest

WARPS = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
METRICS = {  # metric: unit, value
    "gpu__time_duration.sum": ("us", "1,234.56"),
    "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active": ("%", "61.25"),
    "sm__inst_executed_pipe_tensor_op_hmma.avg.pct_of_peak_sustained_active": ("%", "99"),
    "sm__inst_issued.avg.pct_of_peak_sustained_active": ("%", "14.44"),
    "sm__inst_executed.avg.per_cycle_active": ("inst/cycle", "0.56"),
    "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed": ("%", "2.62"),
    "l1tex__data_bank_conflicts_pipe_lsu_mem_shared_op_ld.sum": ("", "1,000"),
    "l1tex__data_bank_conflicts_pipe_lsu_mem_shared_op_st.sum": ("", "234"),
    "launch__registers_per_thread": ("register/thread", "255"),
    "sm__warps_active.avg.pct_of_peak_sustained_active": ("%", "11.78"),
    WARPS.format("wait"): ("inst", "2"),
    WARPS.format("wait_not_issued"): ("inst", "9"),
    WARPS.format("lg_throttle"): ("inst", "5"),
    WARPS.format("long_scoreboard"): ("inst", "n/a"),
    WARPS.format("barrier"): ("inst", "1"),
    WARPS.format("selected"): ("inst", "4"),
}
FIRST = ["ID", "Process ID", "Process Name", "Host Name", "Kernel Name"]


def report(metrics, names=("attention_forward(Params)",)):
    """What ncu prints, with its messages and the program's output around it."""
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow(FIRST + list(metrics))
    writer.writerow([""] * len(FIRST) + [unit for unit, _ in metrics.values()])
    for i, name in enumerate(names):
        writer.writerow([str(i), "1724", "python", "127.0.0.1", name, *(value for _, value in metrics.values())])
    prof = '==PROF== Profiling "attention_forward": 0%....100% - 38 passes'
    return [prof, "checksum out 614.3, of", *text.getvalue().splitlines(), '"quoted", by the program', prof]


def rows(lines):
    """Cells of the table, without its two lines of head."""
    head, _, *body = ncu_table.table(ncu_table.read(lines)).splitlines()
    titles = head.strip("| ").split(" | ")
    return [dict(zip(titles, line.strip("| ").split(" | "), strict=True)) for line in body]


def test_a_report_becomes_a_table():
    assert rows(report(METRICS)) == [
        {
            "kernel": "attention_forward",
            "us": "1234.6",
            "tensor %": "61.2",
            "issue slots %": "14.4",
            "IPC": "0.56",
            "DRAM %": "2.6",
            "bank conflicts": "1234",
            "registers": "255",
            "occupancy %": "11.8",
            "stalls": "lg_throttle 42%, wait 17%",
        }
    ]


def test_missing_metrics_are_dashes():
    (row,) = rows(report({"launch__grid_size": ("", "256")}))
    assert row.pop("kernel") == "attention_forward"
    assert set(row.values()) == {"-"} and len(row) == 9


def test_kernels_of_several_reports_are_in_order():
    other = {"gpu__time_duration.sum": ("ns", "5,020")}
    found = rows(report(METRICS, ["attention_forward", "attention_combine"]) + report(other, ["attention_delta"]))
    assert [row["kernel"] for row in found] == ["attention_forward", "attention_combine", "attention_delta"]
    assert [row["us"] for row in found] == ["1234.6", "1234.6", "5.0"]


@pytest.mark.parametrize(
    ("unit", "shown"), [("nsecond", "2.0"), ("us", "2000.0"), ("msecond", "2000000.0"), ("s", "2000000000.0")]
)
def test_durations_are_in_microseconds(unit, shown):
    (row,) = rows(report({"gpu__time_duration.sum": (unit, "2,000")}))
    assert row["us"] == shown


@pytest.mark.parametrize(
    ("metrics", "title", "shown"),
    [
        (
            {
                "sm__inst_executed_pipe_tensor_op_dmma.avg.pct_of_peak_sustained_active": ("%", "0"),
                "sm__inst_executed_pipe_tensor_op_hmma.avg.pct_of_peak_sustained_active": ("%", "33.3"),
            },
            "tensor %",
            "33.3",
        ),
        ({"sm__pipe_tensor_op_hmma_cycles_active.avg.pct_of_peak_sustained_active": ("%", "7")}, "tensor %", "7.0"),
        (
            {
                "l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum": ("", "12"),
                "l1tex__data_bank_conflicts_pipe_lsu_mem_shared_op_ld.sum": ("", "12"),
            },
            "bank conflicts",
            "12",
        ),
        (
            {
                "smsp__average_warp_latency_issue_stalled_barrier.ratio": ("", "3"),
                "smsp__average_warp_latency_issue_stalled_wait.ratio": ("", "1"),
            },
            "stalls",
            "barrier 75%, wait 25%",
        ),
        ({"smsp__average_warps_issue_stalled_barrier.pct": ("%", "30")}, "stalls", "barrier 100%"),
    ],
)
def test_names_of_other_versions_are_known(metrics, title, shown):
    (row,) = rows(report(metrics))
    assert row[title] == shown


def test_the_command_prints_the_table_or_says_what_is_missing(tmp_path, capsys):
    path = tmp_path / "ncu.csv"
    path.write_text("\n".join(report(METRICS)))
    ncu_table.main([str(path)])
    assert "| attention_forward | 1234.6 |" in capsys.readouterr().out
    path.write_text("==ERROR== no permission\n")
    with pytest.raises(SystemExit):
        ncu_table.main([str(path)])
    assert "no kernels" in capsys.readouterr().err
