"use strict";
(() => {
  document.documentElement.classList.add("js");

  // Tables: sort by a column, filter rows, show the first few until asked for all.
  const number = (text) => {
    const value = parseFloat(text.replace(/,/g, ""));
    return Number.isNaN(value) ? null : value;
  };
  const compare = new Intl.Collator(undefined, { numeric: true }).compare;

  const enhance = (grid) => {
    const table = grid.querySelector("table");
    const body = table.tBodies[0];
    const first = Number(grid.dataset.first);
    const rows = [...body.rows].map((row) => ({ row, text: row.textContent.toLowerCase(), cells: row.cells }));
    const heads = [...table.tHead.rows[0].cells];
    const input = grid.querySelector("input");
    const output = grid.querySelector("output");
    let order = rows;
    let all = rows.length <= first + 3;
    let words = [];

    const more = document.createElement("button");
    more.type = "button";
    more.className = "all";
    more.setAttribute("aria-controls", table.id);
    more.addEventListener("click", () => {
      all = true;
      show();
      const next = order.filter((one) => !one.row.hidden)[first];
      if (next) {
        next.row.tabIndex = -1;
        next.row.focus({ preventScroll: true });
      }
    });
    grid.append(more);

    const show = () => {
      const found = order.filter((one) => words.every((word) => one.text.includes(word)));
      const shown = new Set((all ? found : found.slice(0, first)).map((one) => one.row));
      for (const { row } of rows) row.hidden = !shown.has(row);
      more.hidden = shown.size === found.length;
      more.textContent = `Show all ${found.length.toLocaleString("en")} rows`;
      if (output) output.textContent = words.length ? `${found.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} rows` : "";
    };

    const sort = (at) => {
      const head = heads[at];
      const numeric = head.classList.contains("n");
      const before = head.getAttribute("aria-sort");
      const up = before ? before === "descending" : !numeric;  // numbers: the highest first
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const keyed = rows.map((one) => ({ one, key: one.cells[at].textContent }));
      if (numeric) for (const entry of keyed) entry.key = number(entry.key);
      keyed.sort((a, b) => {
        if (numeric && (a.key === null || b.key === null)) return (a.key === null) - (b.key === null);
        const sign = numeric ? a.key - b.key : compare(a.key, b.key);
        return up ? sign : -sign;
      });
      order = keyed.map((entry) => entry.one);
      body.append(...order.map((one) => one.row));
      show();
    };

    heads.forEach((head, at) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      button.addEventListener("click", () => sort(at));
      head.append(button);
    });
    if (input) {
      input.closest(".tools").hidden = false;
      input.addEventListener("input", () => {
        words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
        show();
      });
    }
    show();
  };
  document.querySelectorAll(".grid").forEach(enhance);

  // Words: what the model says of one, on hover, focus and tap. One tab stop a sentence, arrow keys inside it.
  const tip = document.getElementById("tip");
  let told = null;
  const hide = () => {
    if (told) told.removeAttribute("aria-describedby");
    told = null;
    tip.hidden = true;
  };
  const tell = (word) => {
    if (told === word) return;
    hide();
    told = word;
    tip.textContent = word.dataset.tip;
    tip.hidden = false;
    word.setAttribute("aria-describedby", "tip");
    const at = word.getBoundingClientRect();
    const own = tip.getBoundingClientRect();
    const above = at.top - own.height - 6;
    tip.style.left = `${Math.max(4, Math.min(at.left, document.documentElement.clientWidth - own.width - 4))}px`;
    tip.style.top = `${above < 4 ? at.bottom + 6 : above}px`;
  };
  const asked = (event) => event.target instanceof Element && event.target.closest("[data-tip]");
  document.addEventListener("pointerover", (event) => {
    const word = asked(event);
    if (word) tell(word);
    else if (told && told !== document.activeElement) hide();
  });
  document.addEventListener("focusin", (event) => (asked(event) ? tell(asked(event)) : hide()));
  document.addEventListener("focusout", hide);
  document.addEventListener("scroll", hide, { passive: true, capture: true });

  for (const sentence of document.querySelectorAll(".sentence")) {
    const words = [...sentence.querySelectorAll(".t")];
    const start = words.find((word) => word.hasAttribute("tabindex")) || words[0];
    for (const word of words) word.tabIndex = word === start ? 0 : -1;
  }
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") return hide();
    const word = event.target instanceof Element && event.target.closest(".t");
    if (!word || event.altKey || event.ctrlKey || event.metaKey) return;
    const words = [...word.parentElement.querySelectorAll(".t")];
    const forward = getComputedStyle(word.parentElement).direction === "rtl" ? "ArrowLeft" : "ArrowRight";
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key] * (forward === "ArrowRight" ? 1 : -1);
    const at = { Home: 0, End: words.length - 1 }[event.key] ?? words.indexOf(word) + step;
    const next = words[at];
    if (!next) return;
    event.preventDefault();
    word.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
    next.scrollIntoView({ block: "nearest" });
    tell(next);
  });
})();
