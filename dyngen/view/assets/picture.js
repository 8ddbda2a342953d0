"use strict";
// Drawing: every pixel of the picture is carried forward to where the modes take it.
//
// It is softmax splatting with all weight on what is in front (dyngen/motion/splatting.py): each
// pixel is a point two pixels wide that spreads its colour by a bilinear kernel; a first pass finds
// what is in front by the depth of its part, a second adds up colours and coverage there. Where
// little has landed, what is behind the picture shows, or what landed beside if all of it is one
// sheet. Around the picture lies a margin of its mirror image, so that nothing tears off its edges.
class NoDrawing extends Error {}

function createPicture(canvas, about, motion, images) {
  const gl = canvas.getContext("webgl2", {
    alpha: false, antialias: false, depth: false, powerPreference: "high-performance",
  });
  if (!gl) throw new NoDrawing("This browser has no WebGL 2, which the picture is drawn with.");
  if (!gl.getExtension("EXT_color_buffer_float") && !gl.getExtension("EXT_color_buffer_half_float"))
    throw new NoDrawing("This device cannot add up colours in half floats (EXT_color_buffer_float).");

  const { width, height, grid, layers, parts } = about;
  const margin = Math.ceil(0.04 * Math.max(width, height));
  const points = (width + 2 * margin) * (height + 2 * margin);
  const coordinates = new Float32Array(4 * layers * parts.length);

  const programs = {
    field: program(gl, EVERYWHERE, FIELD),
    front: program(gl, LAND, FRONT),
    splat: program(gl, LAND, SPLAT),
    compose: program(gl, EVERYWHERE, COMPOSE),
    present: program(gl, EVERYWHERE, PRESENT),
  };
  const textures = {
    labels: texture(gl, gl.TEXTURE_2D, gl.NEAREST, () => {
      gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
      gl.texImage2D(gl.TEXTURE_2D, 0, gl.R8UI, grid.width, grid.height, 0, gl.RED_INTEGER,
        gl.UNSIGNED_BYTE, motion.labels);
    }),
    shapes: texture(gl, gl.TEXTURE_2D_ARRAY, gl.NEAREST, () =>
      gl.texImage3D(gl.TEXTURE_2D_ARRAY, 0, gl.RGBA8_SNORM, grid.width, grid.height, layers, 0,
        gl.RGBA, gl.BYTE, motion.shapes)),
    coordinates: texture(gl, gl.TEXTURE_2D, gl.NEAREST, () =>
      gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA32F, layers, parts.length, 0, gl.RGBA, gl.FLOAT, null)),
    picture: texture(gl, gl.TEXTURE_2D, gl.NEAREST, () => upload(gl, images.picture)),
    behind: texture(gl, gl.TEXTURE_2D, gl.NEAREST, () => upload(gl, images.behind)),
    field: surface(gl, gl.RGBA16F, grid.width, grid.height, gl.NEAREST),
    landed: surface(gl, gl.RGBA16F, width, height, gl.NEAREST),
    whole: surface(gl, gl.RGBA8, width, height, gl.LINEAR),
  };
  const depth = gl.createRenderbuffer();
  gl.bindRenderbuffer(gl.RENDERBUFFER, depth);
  gl.renderbufferStorage(gl.RENDERBUFFER, gl.DEPTH_COMPONENT16, width, height);
  const targets = {
    field: target(gl, textures.field),
    landed: target(gl, textures.landed, depth),
    whole: target(gl, textures.whole),
  };
  gl.bindVertexArray(gl.createVertexArray());

  // Position (2 M) of the modes, in measured amplitudes, to the field of displacements.
  function setCoordinates(position, gain) {
    coordinates.fill(0);
    for (let part = 0; part < parts.length; part++)
      for (let layer = 0; layer < layers; layer++)
        coordinates[4 * (part * layers + layer) + 2] = parts[part].depth;
    about.modes.forEach((mode, m) => {
      const at = 4 * (mode.part * layers + mode.layer), by = mode.scale * gain;
      coordinates[at] = position[2 * m] * by;
      coordinates[at + 1] = position[2 * m + 1] * by;
    });
    gl.bindTexture(gl.TEXTURE_2D, textures.coordinates);
    gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, 0, layers, parts.length, gl.RGBA, gl.FLOAT, coordinates);
  }

  function draw(position, gain = 1) {
    setCoordinates(position, gain);
    gl.disable(gl.BLEND);
    gl.disable(gl.DEPTH_TEST);
    pass("field", targets.field, grid.width, grid.height, { labels: 0, shapes: 1, coordinates: 2 });
    gl.uniform1i(at("field", "layers"), layers);
    gl.drawArrays(gl.TRIANGLES, 0, 3);

    gl.enable(gl.DEPTH_TEST);
    land("front", () => {
      gl.depthMask(true);
      gl.depthFunc(gl.LESS);
      gl.clearColor(0, 0, 0, 0);
      gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
      gl.colorMask(false, false, false, false);
    });
    land("splat", () => {
      gl.colorMask(true, true, true, true);
      gl.depthMask(false);
      gl.depthFunc(gl.LEQUAL);
      gl.enable(gl.BLEND);
      gl.blendFunc(gl.ONE, gl.ONE);
    });
    gl.disable(gl.BLEND);
    gl.disable(gl.DEPTH_TEST);

    pass("compose", targets.whole, width, height, { landed: 0, behind: 1 });
    gl.uniform1i(at("compose", "sheet"), about.sheet ? 1 : 0);
    gl.drawArrays(gl.TRIANGLES, 0, 3);
    pass("present", null, canvas.width, canvas.height, { whole: 0 });
    gl.uniform2f(at("present", "canvas"), canvas.width, canvas.height);
    gl.drawArrays(gl.TRIANGLES, 0, 3);
  }

  function land(name, prepare) {
    pass(name, targets.landed, width, height, { field: 0, picture: 1 });
    gl.uniform2i(at(name, "size"), width, height);
    gl.uniform2i(at(name, "grid"), grid.width, grid.height);
    gl.uniform1i(at(name, "margin"), margin);
    prepare();
    gl.drawArrays(gl.POINTS, 0, points);
  }

  function pass(name, framebuffer, w, h, inputs) {
    gl.bindFramebuffer(gl.FRAMEBUFFER, framebuffer);
    gl.viewport(0, 0, w, h);
    gl.useProgram(programs[name].program);
    for (const [input, unit] of Object.entries(inputs)) {
      gl.activeTexture(gl.TEXTURE0 + unit);
      gl.bindTexture(input === "shapes" ? gl.TEXTURE_2D_ARRAY : gl.TEXTURE_2D, textures[input]);
      gl.uniform1i(at(name, input), unit);
    }
    gl.activeTexture(gl.TEXTURE0);
  }

  function at(name, uniform) {
    const { program, places } = programs[name];
    if (!(uniform in places)) places[uniform] = gl.getUniformLocation(program, uniform);
    return places[uniform];
  }

  // The picture as drawn last, red green blue alpha bytes from the top: for tests and measurements.
  function pixels() {
    const bytes = new Uint8Array(4 * width * height);
    gl.bindFramebuffer(gl.FRAMEBUFFER, targets.whole);
    gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, bytes);
    return bytes;
  }

  return { draw, pixels };
}

const HEAD = `#version 300 es
precision highp float; precision highp int; precision highp sampler2D;
precision highp sampler2DArray; precision highp usampler2D;
`;

// One triangle that covers everything.
const EVERYWHERE = `${HEAD}
void main() {
  gl_Position = vec4(gl_VertexID == 1 ? 3.0 : -1.0, gl_VertexID == 2 ? 3.0 : -1.0, 0.0, 1.0);
}`;

// Displacement of every grid point: F = Re sum_m S_m q_m over the modes of its part.
const FIELD = `${HEAD}
uniform usampler2D labels; uniform sampler2DArray shapes; uniform sampler2D coordinates;
uniform int layers;
out vec4 field;
void main() {
  ivec2 p = ivec2(gl_FragCoord.xy);
  int part = int(texelFetch(labels, p, 0).r);
  vec2 moved = vec2(0.0);
  float depth = texelFetch(coordinates, ivec2(0, part), 0).z;
  for (int l = 0; l < layers; l++) {
    vec2 q = texelFetch(coordinates, ivec2(l, part), 0).xy;
    vec4 s = texelFetch(shapes, ivec3(p, l), 0);
    moved += s.xz * q.x - s.yw * q.y;
  }
  field = vec4(moved, depth, float(part));
}`;

// Where a pixel lands. Between grid points its motion is bilinear among those of one part.
const LAND = `${HEAD}
uniform sampler2D field; uniform sampler2D picture;
uniform ivec2 size, grid; uniform int margin;
flat out vec2 centre; flat out vec3 colour;
void main() {
  int across = size.x + 2 * margin;
  ivec2 p = ivec2(gl_VertexID % across, gl_VertexID / across) - margin;
  ivec2 mirrored = size - 1 - abs(size - 1 - abs(p));
  mirrored = abs(mirrored);
  vec2 place = (clamp(vec2(p), vec2(0.0), vec2(size - 1)) + 0.5) * vec2(grid) / vec2(size) - 0.5;
  place = clamp(place, vec2(0.0), vec2(grid - 1));
  ivec2 corner = ivec2(floor(place));
  vec2 share = place - vec2(corner);
  vec4 nearest = texelFetch(field, ivec2(floor(place + 0.5)), 0);
  vec3 sum = vec3(0.0);
  for (int i = 0; i < 4; i++) {
    ivec2 step = ivec2(i & 1, i >> 1);
    vec4 f = texelFetch(field, min(corner + step, grid - 1), 0);
    vec2 w = mix(1.0 - share, share, vec2(step));
    if (f.w == nearest.w) sum += vec3(f.xy, 1.0) * w.x * w.y;
  }
  centre = vec2(p) + 0.5 + sum.xy / sum.z;
  colour = texelFetch(picture, mirrored, 0).rgb;
  gl_Position = vec4(centre / vec2(size) * 2.0 - 1.0, 0.9 - 1.8 * nearest.z, 1.0);
  gl_PointSize = 2.0;
}`;

const KERNEL = `
flat in vec2 centre; flat in vec3 colour;
float kernel() {
  vec2 off = max(1.0 - abs(gl_FragCoord.xy - centre), 0.0);
  return off.x * off.y;
}`;

const FRONT = `${HEAD}${KERNEL}
void main() { if (kernel() < 0.2) discard; }`;

const SPLAT = `${HEAD}${KERNEL}
out vec4 sum;
void main() { float share = kernel(); sum = vec4(colour, 1.0) * share; }`;

const COMPOSE = `${HEAD}
uniform sampler2D landed, behind; uniform bool sheet;
out vec4 whole;
void main() {
  ivec2 p = ivec2(gl_FragCoord.xy);
  vec4 sum = texelFetch(landed, p, 0);
  if (sheet && sum.a < 0.45) { // stretched, not torn: what landed around it goes on here
    ivec2 last = textureSize(landed, 0) - 1;
    for (int i = 0; i < 49; i++) {
      ivec2 off = ivec2(i % 7, i / 7) - 3;
      float near = exp(-0.7 * float(off.x * off.x + off.y * off.y));
      sum += near * texelFetch(landed, clamp(p + off, ivec2(0), last), 0);
    }
  }
  vec3 there = texelFetch(behind, p, 0).rgb;
  float covered = smoothstep(0.0, 0.45, sum.a);
  whole = vec4(mix(there, sum.rgb / max(sum.a, 1e-4), covered), 1.0);
}`;

// To the canvas, by Catmull-Rom interpolation from five bilinear reads (Sigg & Hadwiger 2005).
const PRESENT = `${HEAD}
uniform sampler2D whole; uniform vec2 canvas;
out vec4 colour;
void main() {
  vec2 size = vec2(textureSize(whole, 0));
  vec2 at = vec2(gl_FragCoord.x, canvas.y - gl_FragCoord.y) / canvas * size;
  vec2 one = floor(at - 0.5) + 0.5, f = at - one;
  vec2 w0 = f * (-0.5 + f * (1.0 - 0.5 * f)), w1 = 1.0 + f * f * (-2.5 + 1.5 * f);
  vec2 w2 = f * (0.5 + f * (2.0 - 1.5 * f)), w3 = f * f * (-0.5 + 0.5 * f);
  vec2 w12 = w1 + w2, p0 = (one - 1.0) / size, p3 = (one + 2.0) / size;
  vec2 p12 = (one + w2 / w12) / size;
  vec4 sum = vec4(texture(whole, vec2(p12.x, p0.y)).rgb, 1.0) * w12.x * w0.y
    + vec4(texture(whole, vec2(p0.x, p12.y)).rgb, 1.0) * w0.x * w12.y
    + vec4(texture(whole, p12).rgb, 1.0) * w12.x * w12.y
    + vec4(texture(whole, vec2(p3.x, p12.y)).rgb, 1.0) * w3.x * w12.y
    + vec4(texture(whole, vec2(p12.x, p3.y)).rgb, 1.0) * w12.x * w3.y;
  colour = vec4(clamp(sum.rgb / sum.a, 0.0, 1.0), 1.0);
}`;

function program(gl, vertex, fragment) {
  const made = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(made, shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS) && !gl.isContextLost())
      throw new Error(`A shader does not compile: ${gl.getShaderInfoLog(shader)}`);
  }
  gl.linkProgram(made);
  if (!gl.getProgramParameter(made, gl.LINK_STATUS) && !gl.isContextLost())
    throw new Error(`A shader does not link: ${gl.getProgramInfoLog(made)}`);
  return { program: made, places: {} };
}

function texture(gl, kind, filter, fill) {
  const made = gl.createTexture();
  gl.bindTexture(kind, made);
  for (const side of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(kind, side, filter);
  for (const axis of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T])
    gl.texParameteri(kind, axis, gl.CLAMP_TO_EDGE);
  fill();
  return made;
}

function upload(gl, image) {
  gl.pixelStorei(gl.UNPACK_COLORSPACE_CONVERSION_WEBGL, gl.NONE);
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA8, gl.RGBA, gl.UNSIGNED_BYTE, image);
}

function surface(gl, format, width, height, filter) {
  return texture(gl, gl.TEXTURE_2D, filter, () =>
    gl.texStorage2D(gl.TEXTURE_2D, 1, format, width, height));
}

function target(gl, colour, depth) {
  const made = gl.createFramebuffer();
  gl.bindFramebuffer(gl.FRAMEBUFFER, made);
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, colour, 0);
  if (depth) gl.framebufferRenderbuffer(gl.FRAMEBUFFER, gl.DEPTH_ATTACHMENT, gl.RENDERBUFFER, depth);
  if (gl.checkFramebufferStatus(gl.FRAMEBUFFER) !== gl.FRAMEBUFFER_COMPLETE && !gl.isContextLost())
    throw new NoDrawing("This device cannot draw into half floats.");
  return made;
}
