"use strict";
(() => {
  const by = (id) => document.getElementById(id);
  const marks = [...document.querySelectorAll("g[data-r]")].filter((g) => g.dataset.r !== "");
  const rows = [...document.querySelectorAll("#table tbody tr")];
  const ofRow = new Map(rows.map((row) => [row.dataset.r, row]));

  // Sorting: numbers by their value, texts by their letters; what was not measured stays at the end.
  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const sort = () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const key = (row) => {
          const cell = row.cells[column];
          if (cell.dataset.v !== undefined) return cell.dataset.v === "" ? null : Number(cell.dataset.v);
          const text = cell.textContent.trim(), number = parseFloat(text.replace(/,/g, ""));
          return head.classList.contains("n") && !Number.isNaN(number) ? number : text;
        };
        const sorted = [...table.tBodies[0].rows].map((row) => [key(row), row]);
        sorted.sort(([a], [b]) => {
          if (a === null || b === null) return (a === null) - (b === null);
          const order = typeof a === "number" && typeof b === "number" ? a - b
            : String(a).localeCompare(String(b), undefined, { numeric: true });
          return up ? order : -order;
        });
        table.tBodies[0].append(...sorted.map(([, row]) => row));
      };
      head.tabIndex = 0;
      head.addEventListener("click", sort);
      head.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(); });
    });
  }

  // The filter hides rows, and dims the marks none of whose runs is shown.
  const text = rows.map((row) => `${row.textContent} ${row.cells[1].title}`.toLowerCase());
  const filter = () => {
    const words = by("words").value.toLowerCase().split(/\s+/).filter(Boolean), verdict = by("verdict").value;
    let count = 0;
    rows.forEach((row, i) => {
      const said = row.cells[1].textContent;
      const right = !verdict || said.split(" ").includes(verdict);
      row.hidden = !(right && words.every((word) => text[i].includes(word)));
      count += !row.hidden;
    });
    by("shown").textContent = `${count} of ${rows.length}`;
    for (const g of marks) g.classList.toggle("off", g.dataset.r.split(" ").every((r) => ofRow.get(r)?.hidden));
  };
  by("filter").addEventListener("input", filter);
  by("filter").addEventListener("submit", (event) => event.preventDefault());

  for (const g of marks) {
    g.addEventListener("click", () => {
      rows.forEach((row) => row.classList.remove("picked"));
      const chosen = g.dataset.r.split(" ").map((r) => ofRow.get(r)).filter(Boolean);
      chosen.forEach((row) => row.classList.add("picked"));
      chosen[0]?.scrollIntoView({ block: "center", behavior: "smooth" });
    });
  }

  // What differs between two runs.
  const facts = JSON.parse(by("facts").textContent);
  if (!by("pick") || facts.runs.length < 2) return;
  const one = by("one"), other = by("other"), body = by("pair").querySelector("tbody");
  for (const select of [one, other]) facts.runs.forEach((name, i) => select.append(new Option(name, i)));
  other.value = "1";
  const show = () => {
    const i = Number(one.value), j = Number(other.value), found = [];
    for (const [key, values, places] of facts.facts) {
      if (places[i] === places[j]) continue;
      const row = document.createElement("tr");
      [key, ...[places[i], places[j]].map((p) => (p === null ? "–" : values[p]))].forEach((value, column) => {
        const cell = document.createElement(column ? "td" : "th");
        cell.textContent = value;
        row.append(cell);
      });
      found.push(row);
    }
    if (!found.length) {
      const row = document.createElement("tr"), cell = document.createElement("td");
      cell.colSpan = 3;
      cell.textContent = "Nothing that is recorded differs between these two.";
      row.append(cell);
      found.push(row);
    }
    body.replaceChildren(...found);
  };
  by("pick").hidden = by("pair").hidden = false;
  by("pick").addEventListener("input", show);
  show();
})();
