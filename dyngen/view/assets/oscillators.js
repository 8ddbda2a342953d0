"use strict";
// Damped oscillators, one to a mode: the arithmetic of dyngen/motion/modes.py, step for step.
//
// Complex numbers lie in pairs (real, imaginary). A state is {position, velocity}, Float64Arrays of
// 2 M. Modes are {angular, damping, farthest}, Float64Arrays of M: radians per second, ratio, and
// the most pixels a mode moves anything.
const oscillators = (() => {
  const LARGEST_PHASE = 0.25; // radians of the fastest mode in one step
  const HAND = 2 * Math.PI * 3, HAND_DAMPING = 0.9; // the spring by which a hand holds on
  const LEAST_SHARE = 1e-3; // of the largest singular value: below, a direction cannot be pulled

  const rest = (count) => ({
    position: new Float64Array(2 * count),
    velocity: new Float64Array(2 * count),
  });

  const substeps = (angular, duration) =>
    Math.max(1, Math.ceil((Math.max(...angular) * duration) / LARGEST_PHASE));

  // Semi-implicit Euler with the damping at the middle of the step, in place.
  function advance(state, m, w, damping, h, count, push) {
    const loss = damping * w * h;
    for (let i = 2 * m; i < 2 * m + 2; i++) {
      let q = state.position[i], v = state.velocity[i];
      for (let s = 0; s < count; s++) {
        v = ((1 - loss) * v + h * (push[i] - w * w * q)) / (1 + loss);
        q += h * v;
      }
      state.position[i] = q;
      state.velocity[i] = v;
    }
  }

  // `duration` seconds under a constant force (2 M); modes that `held` marks follow `target`
  // instead, in the hand's spring.
  function step(modes, state, duration, force, held, target) {
    const count = substeps(modes.angular, duration);
    const inHand = substeps([HAND], duration);
    const drawn = target && target.map((x) => HAND * HAND * x);
    modes.angular.forEach((w, m) => {
      if (held && held[m]) advance(state, m, HAND, HAND_DAMPING, duration / inHand, inHand, drawn);
      else advance(state, m, w, modes.damping[m], duration / count, count, force);
    });
  }

  // Coordinates (2 M) in which a point whose shapes are (4 M: re x, im x, re y, im y) is held at an
  // offset [x, y], with least energy, and nothing moves much beyond `reach`.
  function hold(modes, shapes, offset, reach) {
    const count = modes.angular.length, response = [0, 0, 0]; // xx, xy, yy
    for (let m = 0; m < count; m++) {
      const [a, b, c, d] = shapes.subarray(4 * m, 4 * m + 4), w2 = modes.angular[m] ** 2;
      response[0] += (a * a + b * b) / w2;
      response[1] += (a * c + b * d) / w2;
      response[2] += (c * c + d * d) / w2;
    }
    const force = solve(response, offset), position = new Float64Array(2 * count);
    let bound = 0;
    for (let m = 0; m < count; m++) {
      const [a, b, c, d] = shapes.subarray(4 * m, 4 * m + 4), w2 = modes.angular[m] ** 2;
      position[2 * m] = (a * force[0] + c * force[1]) / w2;
      position[2 * m + 1] = -(b * force[0] + d * force[1]) / w2;
      bound += Math.hypot(position[2 * m], position[2 * m + 1]) * modes.farthest[m];
    }
    const less = 1 / Math.sqrt(1 + (bound / reach) ** 2);
    return position.map((x) => x * less);
  }

  // The pseudo-inverse of a symmetric 2 x 2 matrix [xx, xy, yy] times a vector.
  function solve([xx, xy, yy], [x, y]) {
    const middle = (xx + yy) / 2, away = Math.hypot((xx - yy) / 2, xy);
    const turn = Math.atan2(2 * xy, xx - yy) / 2;
    const most = Math.max(Math.abs(middle + away), Math.abs(middle - away));
    const result = [0, 0];
    for (const [value, angle] of [[middle + away, turn], [middle - away, turn + Math.PI / 2]]) {
      if (!(Math.abs(value) > LEAST_SHARE * most)) continue;
      const c = Math.cos(angle), s = Math.sin(angle), along = (x * c + y * s) / value;
      result[0] += along * c;
      result[1] += along * s;
    }
    return result;
  }

  // The discrete energy of each mode, which never grows without a push.
  function energy(modes, state, duration) {
    const h = duration / substeps(modes.angular, duration);
    return modes.angular.map((w, m) => {
      let sum = 0;
      for (let i = 2 * m; i < 2 * m + 2; i++) {
        const q = state.position[i], v = state.velocity[i];
        sum += v * v + w * w * (q - h * v) * q;
      }
      return sum / 2;
    });
  }

  return { rest, substeps, step, hold, energy, HAND };
})();
