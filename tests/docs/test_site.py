"""The site refers to all that is public, and its bounds are those of the code."""

import re
from pathlib import Path

import cbam_deploy
from cbam_deploy.numerics.tolerances import LAYERS, OUTPUTS

DOCS = Path(__file__).parents[2] / "docs"


def test_every_public_function_is_in_the_reference():
    listed = re.findall(
        r"^::: cbam_deploy\.(?:\w+\.)*(\w+)$", (DOCS / "functions.md").read_text(), re.M
    )
    public = set(dir(cbam_deploy)) - {"__version__"}
    missing = public - set(listed)
    assert not missing, (
        f"add to docs/functions.md: {[f'::: cbam_deploy.{name}' for name in missing]}"
        " (by its full path where a module has that name, as for lower)"
    )


def test_the_page_of_tolerances_has_those_of_the_code():
    page = (DOCS / "tolerances.md").read_text()
    rows = re.findall(
        r"^\| (fp32|fp16|bf16|int8|fp8) \| (\S+) \| (\S+) \| (\S+) \| (\S+) \|$", page, re.M
    )
    said = {kind: [None if cell == "–" else float(cell) for cell in row] for kind, *row in rows}
    known = {
        kind: [one.max_relative, one.min_cosine, one.min_snr_db, one.min_channel_snr_db]
        for kind, one in OUTPUTS.items()
    }
    assert said == known
    assert f"held to {LAYERS['fp32'].max_relative:.0e}".replace("e-0", "e-") in page
