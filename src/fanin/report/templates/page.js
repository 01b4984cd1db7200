// What a page does beyond showing its text: theme, filters, sorting, copying, and the figures.
// It asks nothing of any network, and without it the text is all there.
(() => {
  "use strict";
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const STORE = "fanin-theme";
  root.classList.add("scripted");

  // ---- theme: that of the system until the reader chooses --------------------------------------

  const remembered = () => {
    try {
      return localStorage.getItem(STORE);
    } catch {
      return null; // some browsers give pages from disk no storage
    }
  };
  const remember = (theme) => {
    try {
      localStorage.setItem(STORE, theme);
    } catch {
      // then the choice lasts as long as the page
    }
  };
  if (["light", "dark"].includes(remembered())) root.dataset.theme = remembered();
  const theme = () => root.dataset.theme || (system.matches ? "dark" : "light");

  const themed = () => {
    const button = document.getElementById("theme");
    const apply = () => {
      button.textContent = theme() === "dark" ? "Light theme" : "Dark theme";
      redraw();
    };
    button.addEventListener("click", () => {
      root.dataset.theme = theme() === "dark" ? "light" : "dark";
      remember(root.dataset.theme);
      apply();
    });
    system.addEventListener("change", apply);
    apply();
  };

  // ---- tables ----------------------------------------------------------------------------------

  // The figure that a cell starts with; what is missing or not a number sorts last, either way.
  const figure = (cell) => {
    const text = cell.textContent.replaceAll(",", "");
    return /^-?inf/.test(text) ? (text.startsWith("-") ? -Infinity : Infinity) : parseFloat(text);
  };
  const byFigure = (a, b) => {
    if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
    return a < b ? -1 : a > b ? 1 : 0;
  };
  const byText = new Intl.Collator("en", { numeric: true }).compare;

  // Sorts and filters a table.  Rows that are not wanted go last, into groups that are not shown.
  const arranger = (table) => {
    const original = [...table.querySelectorAll("tbody tr")];
    const size = table.tBodies[0].rows.length;
    let order = original;
    let wanted = () => true;
    const fill = () => {
      for (const row of original) row.hidden = !wanted(row);
      const shown = order.filter((row) => !row.hidden);
      const rows = [...shown, ...order.filter((row) => row.hidden)];
      [...table.tBodies].forEach((body, group) => {
        const visible = Math.min(Math.max(shown.length - group * size, 0), size);
        body.replaceChildren(...rows.slice(group * size, (group + 1) * size));
        body.style.setProperty("--rows", visible);
        body.hidden = visible === 0;
      });
      return shown.length;
    };
    return {
      rows: original,
      filter: (test) => {
        wanted = test;
        return fill();
      },
      sort: (rows) => {
        order = rows ?? original;
        fill();
      },
    };
  };

  // A click sorts upwards, the next downwards, the third puts the rows back in their order.
  const sortable = (table, arranged) => {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const next = { ascending: "descending", descending: "" }[head.ariaSort] ?? "ascending";
        for (const other of table.querySelectorAll("[aria-sort]")) other.removeAttribute("aria-sort");
        if (!next) return arranged.sort(null);
        head.setAttribute("aria-sort", next);
        const numeric = head.classList.contains("number");
        const key = (row) => (numeric ? figure(row.cells[column]) : row.cells[column].textContent);
        const keyed = arranged.rows.map((row) => [key(row), row]);
        const compare = numeric ? byFigure : byText;
        const sign = next === "ascending" ? 1 : -1;
        keyed.sort(([a], [b]) => (Number.isNaN(a) || Number.isNaN(b) ? 1 : sign) * compare(a, b));
        return arranged.sort(keyed.map(([, row]) => row));
      });
    });
  };

  // Rows that hold every word of the filter, and a finding of the chosen severity.
  const filtered = (section, arranged) => {
    const input = section.querySelector("input[type=search]");
    const severity = section.querySelector("select");
    const status = section.querySelector("[role=status]");
    let texts = null;
    const apply = () => {
      texts ??= new Map(arranged.rows.map((row) => [row, row.textContent.toLowerCase()]));
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      const grave = severity?.value ?? "";
      const all = arranged.rows.length;
      const shown = arranged.filter(
        (row) =>
          (!grave || (grave === "any" ? row.className : row.className === grave)) &&
          words.every((word) => texts.get(row).includes(word)),
      );
      const total = `${all.toLocaleString("en")} ${status.dataset.noun}${all === 1 ? "" : "s"}`;
      status.textContent = shown === all ? total : `${shown.toLocaleString("en")} of ${total}`;
    };
    input.addEventListener("input", apply);
    input.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !input.value) return;
      event.preventDefault();
      input.value = "";
      apply();
    });
    severity?.addEventListener("change", apply);
  };

  // "/" goes to the filter, unless the reader is typing.
  const shortcut = (event) => {
    const filter = document.getElementById("filter");
    const typing = event.target.closest?.("input, textarea, select, [contenteditable]");
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey || typing || !filter) return;
    event.preventDefault();
    filter.focus();
    filter.select();
  };

  // ---- buttons ---------------------------------------------------------------------------------

  const clip = async (text) => {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      const field = document.createElement("textarea"); // where a page from disk has no clipboard
      field.value = text;
      document.body.append(field);
      field.select();
      const copied = document.execCommand("copy");
      field.remove();
      return copied;
    }
  };
  const copy = async (button) => {
    const text = button.closest(".copyable").querySelector(".text").textContent;
    const copied = await clip(text);
    const said = document.getElementById("said");
    button.focus();
    button.textContent = copied ? "copied" : "not copied";
    said.textContent = copied ? "Copied" : "The browser did not allow copying";
    setTimeout(() => {
      button.textContent = "copy";
      said.textContent = "";
    }, 2000);
  };

  const narrow = (button) => {
    const input = document.getElementById(button.dataset.into);
    input.value = button.dataset.filter;
    input.dispatchEvent(new Event("input"));
    input.focus({ preventScroll: true });
    input.closest("section").scrollIntoView();
  };

  const clicked = (event) => {
    const button = event.target.closest?.("button");
    if (!button) return;
    if (button.matches(".copy")) copy(button);
    else if (button.dataset.into) narrow(button);
    else if (button.dataset.save) save(button);
  };

  // ---- figures ---------------------------------------------------------------------------------

  const WIDTH = 720; // of a saved picture
  const SCALE = 2; // pixels of a saved picture for each of the figure
  const drawn = new Map();
  const busy = new Set();
  let data = null;

  const embed = (place, spec, look) =>
    vegaEmbed(place, spec, { ast: true, renderer: "svg", actions: false, config: look, tooltip: { theme: theme() } });

  // A theme that is chosen while a figure is being drawn is that of its next turn.
  const draw = async (figure) => {
    if (busy.has(figure)) return;
    busy.add(figure);
    const chart = figure.querySelector(".chart");
    while (chart.dataset.drawn !== theme()) {
      const look = theme();
      chart.dataset.drawn = look;
      drawn.get(figure)?.finalize();
      drawn.set(figure, await embed(chart, data.specs[figure.dataset.kind], data.themes[look]));
    }
    busy.delete(figure);
  };

  const redraw = () => {
    for (const figure of drawn.keys()) draw(figure);
  };

  // First those that come into view, then, when there is time, the others: for a printer.
  const drawAll = () => {
    const holder = document.getElementById("specs");
    if (!holder) return;
    data = JSON.parse(holder.textContent);
    const figures = [...document.querySelectorAll("figure[data-kind]")];
    const seen = new IntersectionObserver((entries) => {
      for (const entry of entries.filter((each) => each.isIntersecting)) {
        seen.unobserve(entry.target);
        draw(entry.target);
      }
    });
    for (const each of figures) seen.observe(each);
    const idle = window.requestIdleCallback ?? ((task) => setTimeout(task, 200));
    const rest = async () => {
      const next = figures.find((each) => !each.querySelector(".chart").dataset.drawn);
      if (!next) return;
      await draw(next);
      idle(rest);
    };
    idle(rest);
  };

  // A picture that stands alone: with its title, on white, without the page's theme.
  const save = async (button) => {
    const figure = button.closest("figure");
    const { kind } = figure.dataset;
    const title = figure.querySelector("h3").textContent;
    const spec = { ...data.specs[kind], width: WIDTH, title: { text: title, anchor: "start" } };
    const look = { ...data.themes.light, background: "white" };
    const result = await embed(document.createElement("div"), spec, look);
    const link = document.createElement("a");
    link.download = `${kind}.${button.dataset.save}`;
    link.href = await result.view.toImageURL(button.dataset.save, SCALE);
    link.click();
    result.finalize();
  };

  // ----------------------------------------------------------------------------------------------

  document.addEventListener("DOMContentLoaded", () => {
    const said = document.createElement("p");
    Object.assign(said, { id: "said", className: "unseen" });
    said.setAttribute("role", "status");
    document.body.append(said);
    for (const table of document.querySelectorAll("table.sortable")) {
      const arranged = arranger(table);
      sortable(table, arranged);
      const section = table.closest(".filtered");
      if (section) filtered(section, arranged);
    }
    document.addEventListener("click", clicked);
    document.addEventListener("keydown", shortcut);
    drawAll();
    themed();
  });
})();
