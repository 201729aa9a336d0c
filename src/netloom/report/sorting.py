"""Tables that a click on a column's head sorts: the one script that a page may hold.

The page's content security policy names the script by its hash (CSP level 3, 2.3.1), so that a browser runs these lines
and nothing else, whatever a class or a file is called. Without scripts the table stays in the order it was written.
"""

from __future__ import annotations

import base64
import hashlib

from markupsafe import Markup

SORT_SCRIPT = Markup("""
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    const value = (row) => {
      const cell = row.cells[column];
      return cell.dataset.sort ?? cell.textContent.trim();
    };
    button.addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const order = (first, second) => {
        const a = value(first), b = value(second);
        if (a === "" || b === "") return (a === "") - (b === "");
        const difference = Number(a) - Number(b);
        return sign * (Number.isNaN(difference) ? a.localeCompare(b) : difference);
      };
      body.append(...[...body.rows].sort(order));
    });
  });
}
""")
"""A cell sorts by its `data-sort`, or else its text; as numbers where both are numbers; empty ones come last."""

SORT_SOURCE = Markup(f"'sha256-{base64.b64encode(hashlib.sha256(SORT_SCRIPT.encode()).digest()).decode()}'")
"""What `script-src` allows."""
