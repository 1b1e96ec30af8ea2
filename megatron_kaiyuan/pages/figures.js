// Values on hover and zoom for the page's figures. Without it the figures stand as they are.
"use strict";
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const make = (tag, attributes, parent) => {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    parent.append(element);
    return element;
  };
  const short = value => {
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(3);
    return value.toLocaleString("en", { maximumSignificantDigits: 5 });
  };

  // Between values and pixels of an axis: [value] -> pixel and back, straight or logarithmic.
  const scale = ([low, high], [start, length], log) => {
    const to = log ? Math.log10 : x => x, from = log ? x => 10 ** x : x => x;
    const [a, b] = [to(low), to(high)];
    return {
      pixel: value => start + (to(value) - a) / (b - a) * length,
      value: pixel => from(a + (pixel - start) / length * (b - a)),
    };
  };

  const steps = (low, high, wanted) => {
    const raw = (high - low) / wanted, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map(x => x * power).find(x => x >= raw);
    const found = [];
    for (let n = Math.ceil(low / step); n * step <= high; n++) found.push(n * step);
    return found;
  };

  const nearest = (values, wanted) => {
    let low = 0, high = values.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (values[middle] < wanted) low = middle; else high = middle;
    }
    return Math.abs(values[low] - wanted) <= Math.abs(values[high] - wanted) ? low : high;
  };

  const levelsOf = map => {
    const bytes = Uint8Array.from(atob(map.levels), letter => letter.charCodeAt(0));
    return new DataView(bytes.buffer);
  };

  class Figure {
    constructor(svg, facts, note, reset) {
      Object.assign(this, { svg, facts, note, reset });
      const { box, x, y, log } = JSON.parse(svg.dataset.axes);
      const [left, top, width, height] = box;
      Object.assign(this, { left, top, width, height });
      this.x = scale(x, [left, width], log[0]);
      this.y = scale(y, [top + height, -height], log[1]);
      this.moving = [...svg.querySelectorAll(".moves > *, .moves use")].filter(one => !one.querySelector?.("use"));
      this.own = new Map(this.moving.map(one => [one, one.getAttribute("transform") ?? ""]));
      this.places = new Map([...svg.querySelectorAll(".moves use")].map(one => [one, [+one.getAttribute("x"), +one.getAttribute("y")]]));
      this.marks = [...svg.querySelectorAll(".mark")].map(one => {
        const inner = one.querySelector("[x]");
        return [one, inner ? +inner.getAttribute("x") : left];
      });
      this.ticks = make("g", { class: "ticks" }, svg);
      this.hover = make("g", { class: "hover" }, svg);
      this.band = make("rect", { class: "band", y: top, height, width: 0 }, svg);
      this.whole();
      this.listen();
    }

    // Zoom: pixel -> k * pixel + t on each axis.
    whole() { this.zoom({ kx: 1, tx: 0, ky: 1, ty: 0 }); }

    zoom(view) {
      this.view = view;
      const { kx, tx, ky, ty } = view, zoomed = kx !== 1 || ky !== 1;
      for (const one of this.moving) {
        const place = this.places.get(one);
        if (place) { one.setAttribute("x", kx * place[0] + tx); one.setAttribute("y", ky * place[1] + ty); continue; }
        const own = this.own.get(one);
        one.setAttribute("transform", zoomed ? `matrix(${kx} 0 0 ${ky} ${tx} ${ty}) ${own}` : own);
      }
      for (const [mark, x] of this.marks) {
        const now = kx * x + tx;
        mark.setAttribute("transform", `translate(${now - x} 0)`);
        mark.style.display = now < this.left - 1 || now > this.left + this.width ? "none" : "";
      }
      this.svg.classList.toggle("zoomed", zoomed);
      this.reset.hidden = !zoomed;
      this.ticks.replaceChildren();
      if (zoomed) this.drawTicks();
      this.leave();
    }

    back(pixel, k, t) { return (pixel - t) / k; }

    drawTicks() {
      const { left, top, width, height, view: { kx, tx, ky, ty } } = this, bottom = top + height;
      const across = [left, left + width].map(p => this.x.value(this.back(p, kx, tx)));
      for (const value of steps(...across, width / 90)) {
        const x = kx * this.x.pixel(value) + tx;
        make("line", { x1: x, x2: x, y1: top, y2: bottom }, this.ticks);
        make("text", { x, y: bottom + 16, "text-anchor": "middle" }, this.ticks).textContent = short(value);
      }
      if (ky === 1) return;
      const up = [bottom, top].map(p => this.y.value(this.back(p, ky, ty)));
      for (const value of steps(...up, height / 50)) {
        const y = ky * this.y.pixel(value) + ty;
        make("line", { x1: left, x2: left + width, y1: y, y2: y }, this.ticks);
        make("text", { x: left - 5, y: y + 4, "text-anchor": "end" }, this.ticks).textContent = short(value);
      }
    }

    // Show the abscissas between two pixels; the ordinates fit what lies there.
    select(from, to) {
      const { kx, tx } = this.view;
      const [a, b] = [from, to].sort((p, q) => p - q).map(p => this.back(p, kx, tx));
      if (b - a < this.width * 1e-4) return;
      const view = { kx: this.width / (b - a), ky: 1, ty: 0 };
      view.tx = this.left - a * view.kx;
      const seen = this.facts.series.filter(one => one.drawn).flatMap(one => {
        const xs = this.facts.abscissas[one.x].map(this.x.pixel);
        return one.y.filter((_, n) => xs[n] >= a && xs[n] <= b).map(this.y.pixel).filter(Number.isFinite);
      });
      const high = seen.reduce((p, q) => Math.max(p, q), -Infinity), low = seen.reduce((p, q) => Math.min(p, q), Infinity);
      if (high - low > 0.5) {
        view.ky = 0.9 * this.height / (high - low);
        view.ty = this.top + 0.05 * this.height - low * view.ky;
      }
      this.zoom(view);
    }

    leave() { this.hover.replaceChildren(); this.note.hidden = true; }

    at(pixel, height) {
      const { kx, tx, ky, ty } = this.view;
      pixel = Math.min(Math.max(pixel, this.left), this.left + this.width);
      this.cursor = pixel;
      const wanted = this.x.value(this.back(pixel, kx, tx));
      const rows = this.facts.map ? this.ofMap(wanted, this.y.value(height)) : this.ofSeries(wanted);
      this.hover.replaceChildren();
      make("line", { x1: pixel, x2: pixel, y1: this.top, y2: this.top + this.height }, this.hover);
      for (const row of rows) {
        if (row.y === undefined || !row.drawn) continue;
        const y = ky * this.y.pixel(row.y) + ty;
        if (y < this.top - 1 || y > this.top + this.height + 1) continue;
        make("circle", { cx: kx * this.x.pixel(row.x) + tx, cy: y, r: 3.5, style: `fill: ${row.colour}` }, this.hover);
      }
      this.say(`${this.facts.x}: ${short(rows[0]?.x ?? wanted)}`, rows, pixel);
    }

    ofSeries(wanted) {
      const { kx } = this.view;
      return this.facts.series.map(one => {
        const xs = this.facts.abscissas[one.x], place = nearest(xs, wanted);
        // Of a horizontal line that the axes bound any place will do.
        const x = xs.length === 2 && one.y[0] === one.y[1] ? wanted : xs[place];
        const far = Math.abs(this.x.pixel(x) - this.x.pixel(wanted)) * kx > this.width / 8;
        return far ? null : { ...one, x, y: one.y[place], text: `${one.name}: ${short(one.y[place])}` };
      }).filter(Boolean);
    }

    ofMap(wanted, height) {
      const { across, up, label, unit, low, high } = this.facts.map;
      this.levels ??= levelsOf(this.facts.map);
      const inside = (edges, value) => Math.max(edges.findIndex(edge => edge > value), 1) - 1;
      const column = inside(across, wanted), row = inside(up, height);
      const level = this.levels.getUint16(2 * (row * (across.length - 1) + column), true);
      const value = level === 65535 ? "not finite" : `${short(low + level / 65534 * (high - low))} ${unit}`;
      return [{ x: across[column + 1], text: `${label} ${Math.ceil(up[row])}: ${value}` }];
    }

    say(head, rows, pixel) {
      this.note.replaceChildren();
      const add = (text, colour) => {
        const line = document.createElement("div");
        if (colour) { const dot = document.createElement("i"); dot.style.background = colour; line.append(dot); }
        line.append(text);
        this.note.append(line);
      };
      add(head);
      for (const row of rows.slice(0, 14)) add(row.text, row.colour);
      this.note.hidden = false;
      const factor = this.svg.clientWidth / this.svg.viewBox.baseVal.width;
      const room = this.svg.clientWidth - this.note.offsetWidth;
      const side = pixel * factor + 12 > room ? pixel * factor - this.note.offsetWidth - 12 : pixel * factor + 12;
      this.note.style.left = `${Math.min(Math.max(side, 0), Math.max(room, 0))}px`;
    }

    listen() {
      const place = event => {
        const area = this.svg.getBoundingClientRect(), factor = this.svg.viewBox.baseVal.width / area.width;
        return [(event.clientX - area.left) * factor, (event.clientY - area.top) * factor];
      };
      const clamp = pixel => Math.min(Math.max(pixel, this.left), this.left + this.width);
      let from = null;
      this.svg.addEventListener("pointerdown", event => {
        if (event.button !== 0) return;
        from = clamp(place(event)[0]);
        this.svg.setPointerCapture(event.pointerId);
        this.at(...place(event));
      });
      this.svg.addEventListener("pointermove", event => {
        const [x, y] = place(event);
        this.at(x, y);
        if (from === null) return;
        this.band.setAttribute("x", Math.min(from, clamp(x)));
        this.band.setAttribute("width", Math.abs(clamp(x) - from));
      });
      const release = event => {
        const to = clamp(place(event)[0]);
        this.band.setAttribute("width", 0);
        if (from !== null && event.type === "pointerup" && Math.abs(to - from) > 8) this.select(from, to);
        from = null;
      };
      this.svg.addEventListener("pointerup", release);
      this.svg.addEventListener("pointercancel", release);
      this.svg.addEventListener("pointerleave", () => { if (from === null) this.leave(); });
      this.svg.addEventListener("dblclick", () => this.whole());
      this.svg.addEventListener("blur", () => this.leave());
      this.reset.addEventListener("click", () => this.whole());
      this.svg.addEventListener("keydown", event => {
        const step = { ArrowLeft: -4, ArrowRight: 4 }[event.key];
        if (event.key === "Escape") this.whole();
        else if (step) { this.at((this.cursor ?? this.left) + step, this.top + this.height / 2); event.preventDefault(); }
      });
    }
  }

  for (const plot of document.querySelectorAll(".plot")) {
    const facts = JSON.parse(plot.querySelector("script").textContent);
    for (const svg of plot.querySelectorAll("svg")) {
      new Figure(svg, facts, plot.querySelector(".note"), plot.querySelector("button"));
    }
  }
  document.documentElement.classList.add("live");
})();
