"use strict";
// The page: hands, wind, sliders, modes, slice and recording around the oscillators and the picture.
(async () => {
  const find = (id) => document.getElementById(id);
  const about = JSON.parse(find("about").textContent);
  const { width, height, grid, modes } = about;
  const canvas = find("picture"), frame = find("frame"), marks = find("marks");
  frame.parentElement.style.setProperty("--ratio", width / height);

  let motion, images, picture;
  try {
    [motion, images] = await Promise.all([unpack(), loadImages()]);
    resize();
    picture = createPicture(canvas, about, motion, images);
  } catch (error) {
    document.body.dataset.state = "broken";
    return tell(
      error instanceof NoDrawing
        ? `${error.message} Try a current Firefox, Chrome, Edge or Safari, with graphics acceleration turned on.`
        : `The page could not be read: ${error.message}`,
    );
  }

  // What can be changed. `state` is in measured amplitudes of the modes.
  const settings = { stiffness: 1, damping: 1, amplitude: 1, speed: 1, wind: 1 };
  const state = oscillators.rest(modes.length);
  const shown = new Float64Array(2 * modes.length); // what is drawn, alone or together
  const farthest = Float64Array.from(modes, (mode) => mode.largest);
  const sway = new Float32Array(grid.width * grid.height); // pixels each grid point moves, about
  const calm = 0.02; // pixels: less is rest
  let tuned, paused = false, blowing = false, alone = -1, aloneTime = 0, slicing = false, cut = 0.6;
  let hand = null, mark = null, idle = false, drawn = false, last = 0, recorder = null, clock = 0;
  const timing = { script: 0, frame: 0, frames: 0 };
  tune();
  measureSway();

  // --- the frame loop -------------------------------------------------------------------------
  function loop(now) {
    requestAnimationFrame(loop);
    const passed = Math.min((now - last) / 1000, 0.05);
    last = now;
    const before = performance.now();
    if (!paused && passed > 0) tick(passed);
    const still = paused ? drawn : idle && !slicing;
    if (!still || recorder) show();
    timing.script += 0.05 * (performance.now() - before - timing.script);
    timing.frame += 0.05 * (passed * 1000 - timing.frame);
    timing.frames++;
  }

  function tick(passed) {
    const duration = passed * settings.speed;
    clock += duration;
    if (alone >= 0) return void (aloneTime += duration);
    const force = blowing ? wind.force(duration) : new Float64Array(2 * modes.length);
    oscillators.step(tuned, state, duration, force, hand && hand.held, hand && hand.target);
    idle = !blowing && !hand && extent() < calm;
    if (idle) { state.position.fill(0); state.velocity.fill(0); }
  }

  function show() {
    shown.set(state.position);
    if (alone >= 0) {
      shown.fill(0);
      const mode = modes[alone], angle = tuned.angular[alone] * aloneTime;
      const size = Math.max(1, (0.02 * width) / mode.largest); // so that a faint one is seen, too
      shown[2 * alone] = size * Math.sin(angle);
      shown[2 * alone + 1] = -size * Math.cos(angle) * Math.min(1, aloneTime * 2);
      if (aloneTime < 0.5) shown[2 * alone] *= aloneTime * 2;
    }
    picture.draw(shown, settings.amplitude);
    if (slicing) scroll();
    drawArrow();
    drawn = true;
  }

  // Something has changed: the picture is to be drawn again, though it rests or the page is paused.
  function wake() { idle = drawn = false; }

  // Pixels that anything is away from rest, or will be, at most.
  function extent() {
    let most = 0;
    for (let m = 0; m < modes.length; m++) {
      const q = Math.hypot(state.position[2 * m], state.position[2 * m + 1]);
      const v = Math.hypot(state.velocity[2 * m], state.velocity[2 * m + 1]);
      most += (q + v / tuned.angular[m]) * farthest[m];
    }
    return most * settings.amplitude;
  }

  function tune() {
    tuned = {
      angular: Float64Array.from(modes, (m) => 2 * Math.PI * m.frequency * Math.sqrt(settings.stiffness)),
      damping: Float64Array.from(modes, (m) => Math.min(m.damping * settings.damping, 0.99)),
      farthest,
    };
    wake();
    describeModes();
  }

  // --- shapes at points -----------------------------------------------------------------------
  function shapeAt(m, column, row, into, at, weight) {
    const mode = modes[m], pixel = row * grid.width + column;
    if (motion.labels[pixel] !== mode.part) return;
    const from = 4 * (mode.layer * grid.width * grid.height + pixel), by = (weight * mode.scale) / 127;
    for (let i = 0; i < 4; i++) into[at + i] += by * motion.shapes[from + i];
  }

  // Shapes (4 M) at a place of the grid, bilinear.
  function shapesAt([x, y]) {
    const found = new Float64Array(4 * modes.length);
    const left = Math.min(Math.floor(x), Math.max(grid.width - 2, 0));
    const top = Math.min(Math.floor(y), Math.max(grid.height - 2, 0));
    const fx = x - left, fy = y - top;
    const right = Math.min(left + 1, grid.width - 1), bottom = Math.min(top + 1, grid.height - 1);
    for (let m = 0; m < modes.length; m++) {
      shapeAt(m, left, top, found, 4 * m, (1 - fx) * (1 - fy));
      shapeAt(m, right, top, found, 4 * m, fx * (1 - fy));
      shapeAt(m, left, bottom, found, 4 * m, (1 - fx) * fy);
      shapeAt(m, right, bottom, found, 4 * m, fx * fy);
    }
    return found;
  }

  function displacementAt(place) {
    const s = shapesAt(place), moved = [0, 0];
    for (let m = 0; m < modes.length; m++)
      for (let axis = 0; axis < 2; axis++)
        moved[axis] += s[4 * m + 2 * axis] * state.position[2 * m] -
          s[4 * m + 2 * axis + 1] * state.position[2 * m + 1];
    return moved;
  }

  function measureSway() {
    const cell = new Float64Array(4);
    modes.forEach((_, m) => {
      for (let row = 0; row < grid.height; row++)
        for (let column = 0; column < grid.width; column++) {
          cell.fill(0);
          shapeAt(m, column, row, cell, 0, 1);
          sway[row * grid.width + column] += cell[0] ** 2 + cell[1] ** 2 + cell[2] ** 2 + cell[3] ** 2;
        }
    });
    for (let i = 0; i < sway.length; i++) sway[i] = Math.sqrt(sway[i]);
  }

  // The place of the grid to take hold of for a press at one: what moves, and is near.
  function anchorNear([x, y]) {
    const reach = 0.035 * grid.width;
    let best = -1, place = [x, y];
    for (let row = 0; row < grid.height; row++)
      for (let column = 0; column < grid.width; column++) {
        const moves = sway[row * grid.width + column];
        if (!moves) continue;
        const far = ((column - x) ** 2 + (row - y) ** 2) / reach ** 2, score = moves / (1 + far) ** 2;
        if (score > best) [best, place] = [score, [column, row]];
      }
    return place;
  }

  // --- a hand ---------------------------------------------------------------------------------
  // Takes hold at a place of the grid; `offset` is in pixels of the picture.
  function grab(place) {
    const anchor = anchorNear(place);
    const part = motion.labels[Math.round(anchor[1]) * grid.width + Math.round(anchor[0])];
    hand = {
      anchor, from: place, offset: [0, 0], shapes: shapesAt(anchor),
      held: modes.map((mode) => mode.part === part), target: new Float64Array(2 * modes.length),
    };
    if (alone >= 0) choose(-1);
    if (paused) pause(false);
    wake();
    find("hint").classList.add("gone");
  }

  function pull(offset) {
    hand.offset = offset;
    const gain = Math.max(settings.amplitude, 0.05);
    hand.target = oscillators.hold(tuned, hand.shapes, [offset[0] / gain, offset[1] / gain], reach() / gain);
  }

  // Pixels that a pull may move anything: some times what was measured, and not the whole picture.
  function reach() {
    const measured = Math.max(...modes.map((m) => m.largest));
    return Math.min(Math.max(5 * measured, 0.04 * width), 0.12 * width);
  }

  const release = () => { hand = null; };

  const toGrid = (event) => {
    const box = canvas.getBoundingClientRect();
    return [
      clamp(((event.clientX - box.left) / box.width) * grid.width - 0.5, 0, grid.width - 1),
      clamp(((event.clientY - box.top) / box.height) * grid.height - 0.5, 0, grid.height - 1),
    ];
  };
  let press = null;
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || press) return;
    canvas.setPointerCapture(event.pointerId);
    find("cross").setAttribute("hidden", "");
    const box = canvas.getBoundingClientRect(), y = (event.clientY - box.top) / box.height;
    if (slicing && Math.abs(y - cut) * box.height < 9) {
      press = { id: event.pointerId, cutting: true };
      return;
    }
    press = { id: event.pointerId, x: event.clientX, y: event.clientY };
    grab(toGrid(event));
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!press || event.pointerId !== press.id) return;
    const box = canvas.getBoundingClientRect();
    if (press.cutting) return setCut((event.clientY - box.top) / box.height);
    const scale = width / box.width;
    if (hand) pull([(event.clientX - press.x) * scale, (event.clientY - press.y) * scale]);
  });
  for (const end of ["pointerup", "pointercancel", "lostpointercapture"])
    canvas.addEventListener(end, (event) => {
      if (!press || event.pointerId !== press.id) return;
      press = null;
      release();
    });

  function drawArrow() {
    const arrow = find("arrow");
    arrow.toggleAttribute("hidden", !hand);
    if (!hand) return;
    const scale = frame.clientWidth / width, moved = displacementAt(hand.anchor);
    const start = [0, 1].map((i) => {
      const size = i ? height / grid.height : width / grid.width;
      return ((hand.anchor[i] + 0.5) * size + moved[i] * settings.amplitude) * scale;
    });
    const end = [0, 1].map((i) => {
      const size = i ? height / grid.height : width / grid.width;
      return ((hand.from[i] + 0.5) * size + hand.offset[i]) * scale;
    });
    for (const line of arrow.querySelectorAll("line")) {
      line.setAttribute("x1", start[0]); line.setAttribute("y1", start[1]);
      line.setAttribute("x2", end[0]); line.setAttribute("y2", end[1]);
      line.toggleAttribute("hidden", Math.hypot(end[0] - start[0], end[1] - start[1]) < 9);
    }
    const dot = arrow.querySelector("circle");
    dot.setAttribute("cx", start[0]); dot.setAttribute("cy", start[1]);
  }

  // --- the keyboard's hand --------------------------------------------------------------------
  const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const pressed = new Set();
  canvas.addEventListener("keydown", (event) => {
    if (!(event.key in ARROWS) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const [x, y] = ARROWS[event.key], far = grid.width / 40;
    if (event.shiftKey) {
      mark = [clamp(mark[0] + far * x, 0, grid.width - 1), clamp(mark[1] + far * y, 0, grid.height - 1)];
      return showMark();
    }
    pressed.add(event.key);
    pullByKeys();
  });
  canvas.addEventListener("keyup", (event) => {
    if (!pressed.delete(event.key)) return;
    if (pressed.size) pullByKeys();
    else release();
  });
  canvas.addEventListener("blur", () => {
    find("cross").setAttribute("hidden", "");
    if (pressed.size) { pressed.clear(); release(); }
  });
  canvas.addEventListener("focus", () => { if (canvas.matches(":focus-visible")) showMark(); });
  function pullByKeys() {
    if (!hand) grab(mark);
    const sum = [...pressed].reduce((s, key) => [s[0] + ARROWS[key][0], s[1] + ARROWS[key][1]], [0, 0]);
    pull(sum.map((x) => 0.05 * width * x));
    showMark();
  }
  function showMark() {
    const cross = find("cross");
    cross.removeAttribute("hidden");
    const x = ((mark[0] + 0.5) / grid.width) * frame.clientWidth;
    cross.setAttribute("transform", `translate(${x} ${((mark[1] + 0.5) / grid.height) * frame.clientHeight})`);
  }
  mark = [0, 0];
  { // begin where most moves
    const most = sway.reduce((best, x, i) => (x > sway[best] ? i : best), 0);
    mark = [most % grid.width, Math.floor(most / grid.width)];
  }

  // --- wind -----------------------------------------------------------------------------------
  // Gusts that come along the picture, and a little of its own for each part: an Ornstein-Uhlenbeck
  // process with the spread of what was measured, whatever a mode's frequency and damping.
  const wind = (() => {
    const LASTS = 0.45, CROSSES = 1.6, STEADY = 0.25, OWN = 0.45, KEPT = 256;
    const random = generator(7), gusts = new Float64Array(KEPT), own = new Float64Array(about.parts.length);
    let newest = 0, since = 0;
    const noise = () => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
    const follow = (x, by) => x * Math.exp(-by / LASTS) + Math.sqrt(1 - Math.exp((-2 * by) / LASTS)) * noise();
    const every = CROSSES / (KEPT - 2);
    function force(duration) {
      for (since += duration; since >= every; since -= every) {
        const before = gusts[newest];
        newest = (newest + 1) % KEPT;
        gusts[newest] = follow(before, every);
      }
      for (let p = 0; p < own.length; p++) own[p] = follow(own[p], duration);
      const push = new Float64Array(2 * modes.length);
      modes.forEach((mode, m) => {
        const w = tuned.angular[m], late = Math.round(about.parts[mode.part].centre[0] * (KEPT - 2));
        const gust = gusts[(newest - late + KEPT) % KEPT];
        const power = (2 * LASTS) / (1 + (w * LASTS) ** 2);
        const spread = Math.sqrt(1 + (power * w) / (4 * tuned.damping[m]));
        const size = (settings.wind * w * w * (STEADY + gust + OWN * own[mode.part])) / spread;
        push[2 * m] = size * mode.push[0];
        push[2 * m + 1] = size * mode.push[1];
      });
      return push;
    }
    return { force };
  })();

  // --- buttons, sliders and keys --------------------------------------------------------------
  const press_ = (id, on) => find(id).setAttribute("aria-pressed", String(on));
  function pause(on) {
    paused = on;
    wake();
    press_("pause", on);
    find("pause").querySelector("span").textContent = on ? "Play" : "Pause";
  }
  function stepOnce() {
    pause(true);
    tick(1 / 60);
    wake();
    show();
  }
  function blow(on) {
    blowing = on;
    wake();
    press_("wind", on);
  }
  function calmDown() {
    blow(false);
    release();
    choose(-1);
    state.position.fill(0);
    state.velocity.fill(0);
    show();
  }
  function open(name) {
    const panel = find("panel"), was = !panel.hidden && !find(name).hidden;
    panel.hidden = was;
    for (const section of ["adjust", "modes"]) find(section).hidden = was || section !== name;
    for (const button of document.querySelectorAll("[data-panel]"))
      button.setAttribute("aria-expanded", String(!was && button.dataset.panel === name));
    if (was && alone >= 0) choose(-1);
    if (!was && name === "modes") drawThumbnails();
  }
  function slice(on) {
    slicing = on;
    press_("sliced", on);
    find("slice").hidden = !on;
    find("cut").toggleAttribute("hidden", !on);
    setCut(cut);
  }
  const actions = {
    pause: () => pause(!paused), step: stepOnce, calm: calmDown, wind: () => blow(!blowing),
    sliced: () => slice(!slicing), record,
  };
  for (const [id, act] of Object.entries(actions)) find(id).addEventListener("click", act);
  for (const button of document.querySelectorAll("[data-panel]"))
    button.addEventListener("click", () => open(button.dataset.panel));
  const keys = {
    " ": actions.pause, ".": stepOnce, w: actions.wind, c: calmDown, x: actions.sliced, r: record,
    a: () => open("adjust"), m: () => open("modes"), Escape: () => choose(-1),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    const control = event.target.closest("button, input");
    if (control && (event.key === " " || control.type === "range" && event.key === ".")) return;
    const act = keys[event.key] || keys[event.key.toLowerCase()];
    if (!act) return;
    event.preventDefault();
    act();
  });

  const SLIDERS = {
    stiffness: ["Stiffness", 0.1, 10], damping: ["Damping", 0.1, 20], amplitude: ["Amplitude", 0, 4],
    speed: ["Speed", 0.1, 3], wind: ["Wind", 0, 3],
  };
  for (const [name, [label, low, high]] of Object.entries(SLIDERS)) {
    const even = low > 0; // a factor: as far down as up
    const to = (x) => (even ? low * (high / low) ** x : low + (high - low) * x);
    const from = (v) => (even ? Math.log(v / low) / Math.log(high / low) : (v - low) / (high - low));
    const box = document.createElement("label");
    box.className = "slider";
    box.innerHTML = `<span>${label}</span><output></output><input type="range" min="0" max="1" step="0.005" id="set-${name}">`;
    const [input, output] = [box.querySelector("input"), box.querySelector("output")];
    const write = () => {
      const text = `× ${settings[name].toFixed(settings[name] < 1 ? 2 : 1)}`;
      output.textContent = text;
      input.setAttribute("aria-valuetext", text);
      input.style.setProperty("--at", `${input.value * 100}%`);
    };
    const set = (value) => { input.value = from(value); settings[name] = value; write(); tune(); };
    input.addEventListener("input", () => {
      const value = to(Number(input.value));
      settings[name] = Math.abs(Math.log(Math.max(value, 1e-9))) < 0.04 ? 1 : value;
      write();
      tune();
    });
    find("sliders").append(box);
    set(1);
    find("reset").addEventListener("click", () => set(1));
  }

  // --- the modes ------------------------------------------------------------------------------
  function choose(m) {
    alone = m;
    aloneTime = 0;
    wake();
    press_("all", m < 0);
    [...find("list").querySelectorAll("button")].forEach((b, i) => b.setAttribute("aria-pressed", String(i === m)));
    [...find("spectrum").querySelectorAll("rect")].forEach((r, i) => r.classList.toggle("chosen", i === m));
    tint();
    if (m >= 0) {
      if (paused) pause(false);
      say(`Mode ${m + 1} alone, ${hertz(modes[m])}`);
    }
  }
  function tint() {
    const shape = find("shape");
    shape.hidden = alone < 0 || !find("tint").checked;
    if (!shape.hidden) drawShape(shape, alone, grid.width, true);
  }
  const hertz = (mode) => `${(mode.frequency * Math.sqrt(settings.stiffness)).toFixed(2)} Hz`;

  // What the list says of each mode: as it sways now, with the sliders where they are.
  function describeModes() {
    [...find("list").querySelectorAll("button")].forEach((button, m) => {
      button.querySelector("b").textContent = hertz(modes[m]);
      button.querySelector("span").textContent = `damping ${tuned.damping[m].toFixed(3)}`;
    });
  }
  function listModes() {
    modes.forEach((mode, m) => {
      const item = document.createElement("li"), button = document.createElement("button");
      button.type = "button";
      button.setAttribute("aria-pressed", "false");
      button.innerHTML = '<canvas aria-hidden="true"></canvas><b></b>' +
        `<small><span></span><br>up to ${mode.largest.toFixed(1)} px</small>`;
      button.addEventListener("click", () => choose(alone === m ? -1 : m));
      item.append(button);
      find("list").append(item);
    });
    describeModes();
    find("all").addEventListener("click", () => choose(-1));
    find("tint").addEventListener("change", tint);
    const top = 1.08 * Math.max(...modes.map((m) => m.frequency));
    const most = Math.max(...modes.map((m) => m.largest)), x = (f) => (264 * f) / top;
    const unit = [0.2, 0.5, 1, 2, 5, 10].find((u) => top / u <= 5.5) || 20;
    let drawing = '<line x1="0" y1="66" x2="264" y2="66" />';
    for (let f = 0; f <= top; f += unit)
      drawing += `<text x="${x(f)}" y="80" text-anchor="${f ? "middle" : "start"}">${+f.toFixed(1)}${f ? "" : " Hz"}</text>`;
    for (const mode of modes) {
      const tall = Math.max(2, (62 * mode.largest) / most);
      drawing += `<rect x="${x(mode.frequency) - 1.5}" y="${66 - tall}" width="3" height="${tall}" rx="1.5" />`;
    }
    find("spectrum").setAttribute("viewBox", "0 0 264 84");
    find("spectrum").innerHTML = drawing;
  }
  let thumbnails = false;
  function drawThumbnails() {
    if (thumbnails) return;
    thumbnails = true;
    [...find("list").querySelectorAll("canvas")].forEach((c, m) => drawShape(c, m, Math.min(168, grid.width), false));
  }
  // How far each pixel goes, and in which direction of two: orange with the farthest, blue against.
  function drawShape(target, m, across, clear) {
    const w = across, h = Math.max(1, Math.round((across * grid.height) / grid.width));
    target.width = w;
    target.height = h;
    const context = target.getContext("2d"), drawn = context.createImageData(w, h), cell = new Float64Array(4);
    const values = new Float64Array(4 * w * h);
    let most = 0, far = 0;
    for (let i = 0; i < w * h; i++) {
      const column = Math.floor((((i % w) + 0.5) * grid.width) / w);
      cell.fill(0);
      shapeAt(m, column, Math.floor(((Math.floor(i / w) + 0.5) * grid.height) / h), cell, 0, 1);
      values.set(cell, 4 * i);
      const size = Math.hypot(...cell);
      if (size > most) [most, far] = [size, i];
    }
    const f = values.slice(4 * far, 4 * far + 4);
    for (let i = 0; i < w * h; i++) {
      const v = values.subarray(4 * i, 4 * i + 4), size = Math.hypot(...v);
      const along = size ? (v[0] * f[0] + v[1] * f[1] + v[2] * f[2] + v[3] * f[3]) / (size * most) : 0;
      const warm = 0.5 + 0.5 * along, strength = most ? Math.sqrt(size / most) : 0;
      const colour = [63 + 177 * warm, 134 + 4 * warm, 216 - 156 * warm];
      for (let c = 0; c < 3; c++)
        drawn.data[4 * i + c] = clear ? colour[c] : 20 + (colour[c] - 20) * strength;
      drawn.data[4 * i + 3] = clear ? 190 * strength : 255;
    }
    context.putImageData(drawn, 0, 0);
  }

  // --- the slice ------------------------------------------------------------------------------
  const strip = find("slice").querySelector("canvas"), ROWS = 240;
  strip.width = width;
  strip.height = ROWS;
  const paper = strip.getContext("2d");
  function scroll() {
    if (paused) return;
    paper.drawImage(strip, 0, 1);
    const row = Math.min(Math.floor(cut * canvas.height), canvas.height - 1);
    paper.drawImage(canvas, 0, row, canvas.width, 1, 0, 0, width, 1);
  }
  function setCut(y) {
    cut = clamp(y, 0.01, 0.99);
    find("row").value = cut;
    const line = find("cut");
    line.setAttribute("x1", 0); line.setAttribute("x2", frame.clientWidth);
    for (const end of ["y1", "y2"]) line.setAttribute(end, cut * frame.clientHeight);
  }
  find("row").addEventListener("input", (event) => setCut(Number(event.target.value)));

  // --- recording ------------------------------------------------------------------------------
  function record() {
    if (recorder) return recorder.stop();
    const kinds = ["video/webm;codecs=vp9", "video/webm;codecs=vp8", "video/webm", "video/mp4"];
    const kind = window.MediaRecorder && kinds.find((k) => MediaRecorder.isTypeSupported(k));
    if (!kind || !canvas.captureStream) return tell("This browser cannot record videos.", 5000);
    const started = performance.now(), parts = [];
    recorder = new MediaRecorder(canvas.captureStream(60), { mimeType: kind, videoBitsPerSecond: 12e6 });
    recorder.ondataavailable = (event) => event.data.size && parts.push(event.data);
    const count = setInterval(() => {
      const seconds = Math.floor((performance.now() - started) / 1000);
      find("recording").querySelector("span").textContent =
        `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
    }, 250);
    recorder.onstop = () => {
      clearInterval(count);
      const link = document.createElement("a"), file = new Blob(parts, { type: kind });
      link.href = URL.createObjectURL(file);
      link.download = `${about.title || "motion"}.${kind.includes("mp4") ? "mp4" : "webm"}`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10000);
      recorder = null;
      press_("record", false);
      find("recording").hidden = true;
      say("Video saved");
    };
    recorder.start(500);
    press_("record", true);
    find("recording").querySelector("span").textContent = "0:00";
    find("recording").hidden = false;
    say("Recording");
  }

  // --- the window -----------------------------------------------------------------------------
  function resize() {
    const shownAt = frame.clientWidth * (window.devicePixelRatio || 1);
    const times = clamp(Math.ceil(shownAt / width - 0.25), 1, 3);
    if (canvas.width === width * times && canvas.height === height * times) return;
    canvas.width = width * times;
    canvas.height = height * times;
  }
  new ResizeObserver(() => {
    if (!recorder) resize();
    setCut(cut);
    if (document.activeElement === canvas && !find("cross").hasAttribute("hidden")) showMark();
    show();
  }).observe(frame);
  canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
  canvas.addEventListener("webglcontextrestored", () => {
    picture = createPicture(canvas, about, motion, images);
    show();
  });
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());

  function tell(text, milliseconds = 0) {
    const message = find("message");
    message.textContent = text;
    message.classList.toggle("note", milliseconds > 0);
    message.hidden = false;
    find("hint").hidden = true;
    if (milliseconds) setTimeout(() => { message.hidden = true; }, milliseconds);
  }
  function say(text) { find("live").textContent = text; }

  async function unpack() {
    if (typeof DecompressionStream === "undefined")
      throw new NoDrawing("This browser is too old to unpack the motion.");
    const packed = Uint8Array.from(atob(find("motion").textContent.trim()), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
    const { width: w, height: h } = grid, size = w * h;
    for (let row = 0; row < bytes.length; row += w)
      for (let i = row + 1; i < row + w; i++) bytes[i] += bytes[i - 1];
    const shapes = new Int8Array(4 * size * about.layers);
    for (let layer = 0; layer < about.layers; layer++)
      for (let c = 0; c < 4; c++) {
        const from = size * (1 + 4 * layer + c), to = 4 * size * layer + c;
        for (let i = 0; i < size; i++) shapes[to + 4 * i] = bytes[from + i];
      }
    return { labels: bytes.slice(0, size), shapes };
  }
  async function loadImages() {
    const load = async (id) => {
      const image = new Image();
      image.src = find(id).textContent.trim();
      await image.decode();
      return image;
    };
    return { picture: await load("image"), behind: await load("behind") };
  }

  find("facts").textContent = `${modes.length} mode${modes.length > 1 ? "s" : ""}, ` +
    `${Math.min(...modes.map((m) => m.frequency)).toFixed(1)} to ${Math.max(...modes.map((m) => m.frequency)).toFixed(1)} Hz`;
  listModes();
  blow(!window.matchMedia("(prefers-reduced-motion: reduce)").matches);
  setCut(cut);
  document.body.dataset.state = "ready";
  window.dyngen = {
    about, motion, settings, state, timing, shapesAt, displacementAt, oscillators,
    tuned: () => tuned, pixels: () => picture.pixels(), draw: (position, gain) => picture.draw(position, gain),
    extent, grab, pull, release, tick, show, hand: () => hand, reach,
  };
  requestAnimationFrame((now) => { last = now; loop(now); });
})();

function clamp(x, low, high) { return Math.min(Math.max(x, low), high); }

// Random numbers in 0..1 from a seed (mulberry32).
function generator(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}
