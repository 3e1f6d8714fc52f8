"""Write what `dvc plots` shows charts by: templates, and the page around them (`make plots`).

The page has 900 kB of JavaScript in it, from the package that draws charts, so that a browser needs no
network. It lies in the environment's folder, and is made with the environment.
"""

import json
from pathlib import Path

from laq.charts.files import as_dict, vega
from laq.charts.registry import CHARTS

TEMPLATES = Path(".dvc/plots")
PAGE = Path(".venv/plots.html")
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{refresh_tag}
<title>Charts of DVC's revisions</title>
<style>
body { display: flex; flex-wrap: wrap; gap: 2rem 3rem; margin: 1rem; font-family: sans-serif; }
body > div { max-width: 100%; overflow-x: auto; }
h2 { margin: 0 0 0.75rem; font-size: 1.1rem; }
img { max-width: 100%; }
</style>
<script>
VEGA
const embed = vegaEmbed;
window.vegaEmbed = async (place, chart) => { // headed by its name, and no method that no revision has
  const text = JSON.stringify(chart), heading = document.createElement("h2");
  const shorten = (part) => {
    if (part === null || typeof part !== "object") return;
    if (Array.isArray(part.domain) && part.domain.length === part.range?.length) {
      const kept = part.domain.map((name) => text.includes(`"method":"${name}"`));
      for (const key of ["domain", "range"]) part[key] = part[key].filter((_, place) => kept[place]);
    }
    Object.values(part).forEach(shorten);
  };
  shorten(chart);
  heading.textContent = place.slice(1).replaceAll("_", " ");
  await embed(place, chart, { actions: false });
  document.querySelector(place).prepend(heading);
};
</script>
</head>
<body>
{plot_divs}
</body>
</html>
"""


def template(name: str) -> str:
    """The template of a chart, as JSON."""
    return json.dumps(as_dict(CHARTS[name].template()), indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Write both."""
    for name in CHARTS:
        (TEMPLATES / f"{name}.json").write_text(template(name), encoding="utf-8")
    if PAGE.parent.is_dir():
        PAGE.write_text(_PAGE.replace("VEGA", vega()), encoding="utf-8")


if __name__ == "__main__":
    main()
