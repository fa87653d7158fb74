"""Known vulnerabilities in the pinned dependencies, by pip-audit; a line that says so where it cannot ask.

    python .ci/audit.py

Exit status 1 where it finds any, else 0: a service that does not answer must not stop a build.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PINS = Path(__file__).parents[1] / "constraints.txt"
OPTIONS = ("--no-deps", "--disable-pip", "--progress-spinner", "off", "--timeout", "10", "--format", "json")


def main() -> int:
    """Ask, print, and give the exit status."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(PINS), *OPTIONS]
    asked = subprocess.run(command, capture_output=True, text=True)
    try:
        report = json.loads(asked.stdout)
    except ValueError:
        why = (asked.stderr.strip() or "no answer").splitlines()[-1]
        print(f"audit: skipped, pip-audit could not ask: {why}")
        return 0
    status, lines = verdict(report)
    print("\n".join(lines))
    return status


def verdict(report: dict[str, Any]) -> tuple[int, list[str]]:
    """(exit status, lines to print) of pip-audit's report."""
    packages = report.get("dependencies", [])
    skipped = [each["name"] for each in packages if "skip_reason" in each]
    found = [_line(each, flaw) for each in packages for flaw in each.get("vulns", [])]
    if found:
        return 1, found
    if len(skipped) == len(packages):
        return 0, [
            "audit: skipped, the vulnerability service cannot be reached: it knows none of the packages"
        ]
    left = f"; not looked up: {', '.join(skipped)}" if skipped else ""
    return 0, [f"audit: no known vulnerability in {len(packages) - len(skipped)} packages{left}"]


def _line(package: dict[str, Any], flaw: dict[str, Any]) -> str:
    mended = ", ".join(flaw["fix_versions"]) or "no version"
    return f"audit: {package['name']} {package['version']}: {flaw['id']}, mended in {mended}"


if __name__ == "__main__":
    sys.exit(main())
