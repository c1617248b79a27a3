"""python -m autodeco_ext"""

from __future__ import annotations

from autodeco_ext.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
