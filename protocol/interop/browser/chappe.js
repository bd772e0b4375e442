// A client of the protocol chappe.v1 for browsers: over WebTransport, or over WebSocket where that is missing or fails.
//
//   const chappe = new Chappe({ server: 'chat.example:7440', device: 'browser', token, ondeliver: (envelope) => … });
//   chappe.connect();
//   const { outcome } = await chappe.submit('ben', new TextEncoder().encode('hello'));
//
// Cursor, recent envelope ids and outbox are held in memory. An app that must not lose anything when its page closes persists
// `chappe.cursor` and the envelope in `ondeliver` (it may be async; the ack waits for it), and its own submits before it sends them.
// Not here: Refresh (a token that ends is replaced by a reconnect, if `token` is a function), peeks, several targets in one submit.

// ---- Protobuf: just the messages of chappe.proto that are used; name:kind=number, * for repeated ----

const messages = {
  ClientFrame: 'hello:Hello=1 submit:Submit=2 ack:Ack=3 ping:Ping=4',
  ServerFrame: 'welcome:Welcome=1 deliver:Deliver=2 backlog_end:BacklogEnd=3 truncated:Truncated=4 submit_result:SubmitResult=5 '
    + 'ephemeral:Ephemeral=6 go_away:GoAway=7 error:Error=8 pong:Pong=9',
  Cursor: 'tag:bytes=1 seq:uint=2',
  Hello: 'token:string=1 device:string=2 resume_token:bytes=3 cursor:Cursor=4 role:enum=5',
  DeviceList: 'devices:string*=1',
  Target: 'number:uint=1 user:string=2 only:DeviceList=3 all_but:DeviceList=4 payload:uint=6',
  Submit: 'submit_id:bytes=1 attempt:uint=2 payloads:bytes*=3 targets:Target*=4 ttl_ms:uint=5 urgency:enum=6 ephemeral:bool=7',
  Ack: 'upto:uint=1',
  Ping: 'nonce:uint=1',
  Limits: 'envelope_bytes_max:uint=1 frame_bytes_max:uint=2 frames_per_second_max:uint=7 frames_burst_max:uint=8 ping_every_ms:uint=9 '
    + 'submits_in_flight_max:uint=10',
  Welcome: 'session:bytes=1 from:uint=3 tag:bytes=4 resume_token:bytes=5 limits:Limits=6 resumed:bool=7 server_time_ms:uint=8',
  Sender: 'user:string=1 device:string=2',
  Deliver: 'seq:uint=1 prev:uint=2 envelope_id:bytes=3 sender:Sender=4 at_ms:uint=5 expires_at_ms:uint=6 payload:bytes=7 urgency:enum=8',
  BacklogEnd: 'upto:uint=1',
  Truncated: 'from:uint=1 to:uint=2 why:enum=3',
  TargetResult: 'number:uint=1 outcome:enum=2 envelope_id:bytes=3 devices:string*=5',
  SubmitResult: 'submit_id:bytes=1 attempt:uint=2 results:TargetResult*=3',
  Ephemeral: 'sender:Sender=1 payload:bytes=2 urgency:enum=3',
  GoAway: 'class:enum=1 retry_after_ms:uint=2 jitter_ms:uint=3 endpoints:string*=4',
  Error: 'code:string=1 message:string=2 retryable:bool=3 limit_name:string=4 retry_after_ms:uint=5 scope:enum=6 submit_id:bytes=7',
  Pong: 'upto:uint=2',
};
for (const [type, fields] of Object.entries(messages)) {
  messages[type] = fields.split(' ').map((field) => {
    const [, name, kind, many, number] = /^(\w+):(\w+)(\*?)=(\d+)$/.exec(field);
    return { name, kind, many: many === '*', number: Number(number), wire: ['uint', 'enum', 'bool'].includes(kind) ? 0 : 2 };
  });
}
const OUTCOMES = ['unknown', 'accepted', 'unknown_user', 'no_device', 'devices_changed', 'quota', 'unavailable', 'not_attempted', 'unknown'];
const UNDECIDED = ['unknown', 'unavailable', 'not_attempted'];
const SCOPE_SUBMIT = 2, SCOPE_CONNECTION = 3, ROLE_MAIN = 1, DAY_MS = 86_400_000;

const hex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

function join(parts) {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  parts.reduce((at, part) => (whole.set(part, at), at + part.length), 0);
  return whole;
}

function varint(value) {
  const bytes = [];
  for (; value > 127; value = Math.floor(value / 128)) bytes.push((value % 128) | 128);
  return Uint8Array.from([...bytes, value]);
}

export function encode(type, message) {
  const parts = [];
  for (const { name, kind, many, number, wire } of messages[type]) {
    for (const value of many ? message[name] ?? [] : [message[name]]) {
      const isDefault = value === undefined || value === 0 || value === false || value.length === 0;
      if (isDefault && !many) continue;
      parts.push(varint(number * 8 + wire));
      if (wire === 0) parts.push(varint(Number(value)));
      else {
        const body = kind === 'bytes' ? value : kind === 'string' ? new TextEncoder().encode(value) : encode(kind, value);
        parts.push(varint(body.length), body);
      }
    }
  }
  return join(parts);
}

// Throws on bytes that are not protobuf; what it does not know it leaves out.
export function decode(type, bytes) {
  const message = {};
  for (const { name, kind, many } of messages[type]) {
    const empty = many ? [] : { uint: 0, enum: 0, bool: false, string: '', bytes: new Uint8Array(0) }[kind];
    if (empty !== undefined) message[name] = empty;
  }
  let at = 0;
  const number = () => {
    for (let value = 0, factor = 1, i = 0; i < 10 && at < bytes.length; i++, factor *= 128) {
      const byte = bytes[at++];
      value += (byte & 127) * factor;
      if (byte < 128) return value;
    }
    throw new Error('bad frame: a number is cut short or too long');
  };
  while (at < bytes.length) {
    const key = number();
    const wire = key % 8;
    const field = messages[type].find((known) => known.number === Math.floor(key / 8));
    const length = { 0: 0, 1: 8, 2: 0, 5: 4 }[wire];
    if (length === undefined || (field && field.wire !== wire)) throw new Error(`bad frame: wire type ${wire}`);
    let value = wire === 0 || wire === 2 ? number() : length;
    if (wire !== 0) {
      if (at + value > bytes.length) throw new Error('bad frame: cut short');
      value = bytes.subarray(at, (at += value));
    }
    if (!field) continue;
    if (field.kind === 'uint' && !Number.isSafeInteger(value)) throw new Error(`bad frame: ${field.name} is beyond 2^53`);
    if (field.kind === 'bool') value = value !== 0;
    else if (field.kind === 'string') value = new TextDecoder('utf-8', { fatal: true }).decode(value);
    else if (messages[field.kind]) value = decode(field.kind, value);
    if (field.many) message[field.name].push(value);
    else message[field.name] = value;
  }
  return message;
}

// ---- Carriers: each opener gives { carrier, send, datagram, close, onframe(bytes, isDatagram), onend(code, reason) } ----

async function openWebTransport(address, hash, abandoned) {
  if (!globalThis.WebTransport) throw new Error('this browser has no WebTransport');
  const options = hash ? { serverCertificateHashes: [{ algorithm: 'sha-256', value: hash }] } : {};
  const transport = new WebTransport(`https://${address}/v1/connect`, options);
  const closed = transport.closed.catch(() => ({}));
  abandoned.addEventListener('abort', () => transport.close());
  await transport.ready;
  const stream = await transport.createBidirectionalStream();
  const writer = stream.writable.getWriter();
  const datagrams = transport.datagrams;
  const datagramWriter = (datagrams.createWritable?.() ?? datagrams.writable).getWriter();
  const link = { carrier: 'WebTransport', frameBytesMax: 1 << 20 };
  const ignore = () => {}; // a failed write ends the reading as well
  link.send = (frame) => writer.write(join([varint(frame.length), frame])).catch(ignore);
  link.datagram = (frame) => frame.length <= datagrams.maxDatagramSize && (datagramWriter.write(frame).catch(ignore), true);
  // A close overtakes what is on its way: so the stream ends first, and the server answers that with its close.
  link.close = async () => {
    await Promise.race([writer.close().then(() => closed).catch(ignore), sleep(1000)]);
    transport.close({ closeCode: 1000 });
  };
  link.start = () => {
    readFrames(stream.readable.getReader(), link).catch(ignore).then(async () => {
      const end = await Promise.race([closed, sleep(1000)]);
      transport.close({ closeCode: 1000 });
      link.onend(end?.closeCode ?? 0, end?.reason ?? '');
    });
    readDatagrams(datagrams.readable.getReader(), link).catch(ignore);
  };
  return link;
}

async function readDatagrams(reader, link) {
  for (let next; !(next = await reader.read()).done;) link.onframe(next.value, true);
}

// Each frame stands behind its length: a varint of at most 4 bytes.
async function readFrames(reader, link) {
  let rest = new Uint8Array(0);
  for (let next; !(next = await reader.read()).done;) {
    rest = join([rest, next.value]);
    for (;;) {
      const size = rest.subarray(0, 4).findIndex((byte) => byte < 128) + 1;
      if (size === 0 && rest.length < 4) break;
      if (size === 0) throw new Error('bad frame: its length is too long');
      const length = rest.subarray(0, size).reduceRight((sum, byte) => sum * 128 + (byte & 127), 0);
      if (length > link.frameBytesMax) throw new Error('the frame is too large');
      if (rest.length < size + length) break;
      link.onframe(rest.subarray(size, size + length), false);
      rest = rest.subarray(size + length);
    }
    link.arriving = rest.length > 0;
  }
}

async function openWebSocket(address, abandoned) {
  const socket = new WebSocket(`wss://${address}/v1/connect`, 'chappe.v1');
  socket.binaryType = 'arraybuffer';
  abandoned.addEventListener('abort', () => socket.close());
  await new Promise((opened, failed) => {
    socket.onopen = opened;
    socket.onclose = () => failed(new Error('WebSocket failed (the browser does not say why)'));
  });
  if (socket.protocol !== 'chappe.v1') {
    socket.close();
    throw new Error('the server does not speak chappe.v1');
  }
  const link = { carrier: 'WebSocket', send: (frame) => socket.send(frame), datagram: () => false, close: () => socket.close(1000) };
  link.start = () => {
    socket.onmessage = ({ data }) => link.onframe(typeof data === 'string' ? Uint8Array.of(7) : new Uint8Array(data), false);
    socket.onclose = ({ code, reason }) => link.onend(code, reason);
  };
  return link;
}

// WebTransport first; WebSocket joins 250 ms later, or as soon as WebTransport has failed. The first that is open is used.
async function open(address, hash, choice) {
  const giveUp = { quic: new AbortController(), tcp: new AbortController() };
  const off = (name) => Promise.reject(new Error(`${name} is switched off`));
  const quic = choice === 'websocket' ? off('WebTransport') : openWebTransport(address, hash, giveUp.quic.signal);
  const turn = Promise.race([sleep(250), quic.then(() => sleep(250), () => {})]);
  const tcp = choice === 'webtransport' ? off('WebSocket') : turn.then(() => {
    giveUp.tcp.signal.throwIfAborted();
    return openWebSocket(address, giveUp.tcp.signal);
  });
  const late = sleep(10_000).then(() => Promise.reject(new Error('no answer in 10 s')));
  try {
    const link = await Promise.race([Promise.any([quic, tcp]), late]);
    (link.carrier === 'WebSocket' ? giveUp.quic : giveUp.tcp).abort();
    return link;
  } catch (error) {
    giveUp.quic.abort();
    giveUp.tcp.abort();
    throw new Error((error.errors ?? [error]).map((each) => each.message).join('; '));
  }
}

// ---- The client ----

// Options: server (host:port), device, token (a string, or a function that gives a fresh one and may be async); certificateHash (bytes),
// carrier ('auto', 'webtransport', 'websocket'), cursor ({tag, seq}, if the app has persisted one).
// Called back: onstate(state, detail, carrier), ondeliver(envelope), onephemeral(envelope, wasDatagram), ontruncated({from, to, why}).
// States: closed, connecting, greeting, live, waiting (to reconnect), superseded (4409), failed (a close that forbids to reconnect).
export class Chappe {
  constructor(options) {
    this.options = options;
    this.cursor = options.cursor;
    this.state = 'closed';
    this.recent = new Set(); // envelope ids
    this.outbox = new Map(); // submit id in hex -> entry, in the order of submitting
    this.failures = 0;
  }

  get carrier() {
    return this.link?.carrier ?? '';
  }

  connect() {
    if (['closed', 'superseded', 'failed'].includes(this.state)) this.dial(this.options.server);
  }

  close() {
    this.stop('closed', '');
  }

  // One target, at most limits.envelope_bytes_max bytes. Gives { outcome, envelopeId } once it is decided, across reconnects; rejects if the
  // server refuses the submit itself, or after 24 hours. `only` and `allBut` name devices of the user.
  submit(user, payload, { only, allBut, ttlMs = 0, urgency = 0 } = {}) {
    const submit_id = crypto.getRandomValues(new Uint8Array(16));
    const submit = { submit_id, attempt: 0, payloads: [payload], targets: [target(user, only, allBut)], ttl_ms: ttlMs, urgency };
    return new Promise((resolve, reject) => {
      this.outbox.set(hex(submit_id), { submit, user, resolve, reject, sent: false, notBefore: 0, failures: 0, first: 0 });
      this.pump();
    });
  }

  // Best effort to devices that are attached now. Tells how it went: 'datagram', 'stream', or '' if there is no connection.
  ephemeral(user, payload, { only, allBut, urgency = 0 } = {}) {
    if (this.state !== 'live') return '';
    const submit_id = crypto.getRandomValues(new Uint8Array(16));
    const submit = { submit_id, attempt: 1, payloads: [payload], targets: [target(user, only, allBut)], urgency, ephemeral: true };
    if (this.link.datagram(encode('ClientFrame', { submit }))) return 'datagram';
    this.send({ submit });
    return 'stream';
  }

  tell(state, detail = '') {
    this.state = state;
    this.options.onstate?.(state, detail, this.carrier);
  }

  send(frame) {
    this.link.sentAt = Date.now();
    this.link.budget -= 1;
    this.link.send(encode('ClientFrame', frame));
  }

  async dial(address) {
    const { device, token, certificateHash, carrier } = this.options;
    const dialing = (this.dialing = {}); // what was dialed before is given up
    this.tell('connecting');
    try {
      const fresh = typeof token === 'function' ? await token() : token;
      const link = await open(address, certificateHash, carrier);
      if (this.dialing !== dialing) return void link.close();
      const now = Date.now();
      Object.assign(link, { work: Promise.resolve(), heard: now, openedAt: now, pingAt: 0, budget: 100, error: '' });
      link.onend = (code, reason) => this.ended(link, code, reason);
      // One frame after the other, so that no `upto` overtakes an envelope that `ondeliver` is still busy with.
      link.onframe = (bytes, isDatagram) => {
        link.heard = Date.now();
        link.work = link.work.then(() => this.link === link && this.take(link, bytes, isDatagram)).catch((error) => {
          link.error ||= error.message;
          link.close();
        });
      };
      this.link = link;
      this.tell('greeting', link.carrier);
      link.start();
      const resume_token = now - this.resume?.at < 300_000 ? this.resume.token : undefined;
      this.send({ hello: { token: fresh, device, resume_token, cursor: this.cursor, role: ROLE_MAIN } });
      link.ticker = setInterval(() => this.tick(link), 500);
    } catch (error) {
      if (this.dialing === dialing) this.retry(error.message);
    }
  }

  take(link, bytes, isDatagram) {
    const frame = decode('ServerFrame', bytes);
    const [kind] = Object.keys(frame);
    if (isDatagram && kind !== 'ephemeral') return undefined;
    return this[`on_${kind}`]?.(frame[kind], link, isDatagram);
  }

  on_welcome({ from, tag, resume_token, limits, resumed }, link) {
    Object.assign(link, { limits, have: from, frameBytesMax: limits.frame_bytes_max, budget: limits.frames_burst_max });
    this.resume = { token: resume_token, at: Date.now() };
    if (!this.cursor || hex(this.cursor.tag) !== hex(tag)) this.cursor = { tag, seq: from };
    this.tell('live', `${link.carrier}${resumed ? ', resumed' : ''}`);
    this.pump();
  }

  async on_deliver({ seq, prev, envelope_id, sender, at_ms, payload, urgency }, link) {
    if (envelope_id.length !== 16 || prev >= seq) throw new Error('bad frame: Deliver');
    if (seq <= link.have) return;
    if (link.have < prev) throw new Error('an envelope is missing');
    link.have = seq;
    const id = hex(envelope_id);
    if (!this.recent.has(id)) await this.options.ondeliver?.({ seq, id, sender, at: new Date(at_ms), payload, urgency });
    this.recent.add(id);
    if (this.recent.size > 1000) this.recent.delete(this.recent.values().next().value);
    this.passed(link, seq);
    this.ackSoon(link);
  }

  async on_truncated(truncated, link) {
    await this.options.ontruncated?.(truncated);
    this.passed(link, truncated.to);
    this.ackSoon(link);
  }

  on_backlog_end({ upto }, link) {
    this.passed(link, upto);
  }

  on_pong({ upto }, link) {
    link.pingAt = 0;
    this.passed(link, upto);
  }

  on_ephemeral({ sender, payload, urgency }, link, isDatagram) {
    return this.options.onephemeral?.({ sender, payload, urgency }, isDatagram);
  }

  on_submit_result({ submit_id, results }) {
    const entry = this.outbox.get(hex(submit_id));
    const result = results.find(({ number }) => number === 0);
    if (!entry || !result) return;
    const outcome = OUTCOMES[result.outcome] ?? OUTCOMES[0];
    if (UNDECIDED.includes(outcome)) return void this.again(entry, jittered(entry.failures++));
    this.outbox.delete(hex(submit_id));
    entry.resolve({ outcome, envelopeId: hex(result.envelope_id) });
    this.pump();
  }

  on_go_away({ retry_after_ms, jitter_ms, endpoints }) {
    const address = endpoints[Math.floor(Math.random() * endpoints.length)] ?? this.options.server;
    this.wait(retry_after_ms + Math.random() * jitter_ms, address.replace(/^\w+:\/\/|\/.*$/g, ''));
  }

  on_error({ code, message, retryable, limit_name, retry_after_ms, scope, submit_id }, link) {
    const text = [code, limit_name, message].filter(Boolean).join(': ');
    if (scope === SCOPE_CONNECTION) link.error = text;
    const entry = scope === SCOPE_SUBMIT && this.outbox.get(hex(submit_id));
    if (!entry) return;
    if (retryable) return void this.again(entry, retry_after_ms || jittered(entry.failures++));
    this.outbox.delete(hex(submit_id));
    entry.reject(new Error(text));
    this.pump();
  }

  // Everything up to here is dealt with, or was not for this device.
  passed(link, upto) {
    link.have = Math.max(link.have, upto);
    this.cursor.seq = Math.max(this.cursor.seq, upto);
  }

  // One ack answers all that came within 50 ms: acks count as frames.
  ackSoon(link) {
    link.ackTimer ??= setTimeout(() => {
      link.ackTimer = undefined;
      if (this.link !== link) return;
      this.send({ ack: { upto: this.cursor.seq } });
    }, 50);
  }

  again(entry, ms) {
    Object.assign(entry, { sent: false, notBefore: Date.now() + ms });
  }

  // Sends what is due, to each user in the order of submitting: nothing passes an entry that waits. `tick` comes back to the rest.
  pump() {
    const now = Date.now();
    const held = new Set();
    let room = (this.link?.limits?.submits_in_flight_max || 64) - [...this.outbox.values()].filter(({ sent }) => sent).length;
    for (const [id, entry] of this.outbox) {
      if (entry.first && now - entry.first > DAY_MS) {
        this.outbox.delete(id);
        entry.reject(new Error('given up after 24 hours; it may have arrived'));
      } else if (!entry.sent) {
        if (this.state !== 'live' || now < entry.notBefore || room <= 0 || this.link.budget < 20) held.add(entry.user);
        if (held.has(entry.user)) continue;
        room -= 1;
        entry.submit.attempt += 1;
        entry.first ||= now;
        entry.sent = true;
        this.send({ submit: entry.submit });
      }
    }
  }

  // Twice a second: what the time asks for.
  tick(link) {
    const now = Date.now();
    if (this.state === 'greeting' && now - link.openedAt > 10_000) {
      link.error = 'no Welcome in 10 s';
      link.close();
    }
    if (this.state !== 'live') return;
    const { ping_every_ms = 25_000, frames_per_second_max = 50, frames_burst_max = 200 } = link.limits;
    link.budget = Math.min(frames_burst_max, link.budget + frames_per_second_max / 2);
    this.pump();
    if (link.pingAt && now - link.pingAt > ping_every_ms && link.heard < link.pingAt) {
      link.error ||= 'the server is silent';
      link.close();
    }
    const busy = link.arriving || link.have > this.cursor.seq;
    if (now - link.sentAt > (busy ? 8_000 : ping_every_ms * (0.8 + Math.random() * 0.1))) {
      link.pingAt = now;
      this.send({ ping: { nonce: Math.floor(Math.random() * 2 ** 32) } });
    }
  }

  ended(link, code, reason) {
    clearInterval(link.ticker);
    if (this.link !== link) return;
    this.link = undefined;
    for (const entry of this.outbox.values()) entry.sent = false; // unanswered is unknown
    if (Date.now() - link.openedAt > 60_000) this.failures = 0;
    const text = `${code >= 3000 ? code : 'the connection was lost'} ${link.error || reason}`.trim();
    if (code === 4409) this.stop('superseded', text);
    else if ((code >= 3500 && code < 4000) || code >= 4500) this.stop('failed', text);
    else if (code === 4401 && typeof this.options.token !== 'function') this.stop('failed', text);
    else if (this.timer) this.tell('waiting', text); // the rest of a GoAway's wait holds
    else this.retry(text, Date.now() - link.openedAt > 60_000);
  }

  retry(detail, atOnce = false) {
    this.tell('waiting', detail);
    this.wait(atOnce ? 0 : jittered(this.failures++), this.options.server);
  }

  wait(ms, address) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      this.leave();
      this.dial(address);
    }, ms);
  }

  leave() {
    const link = this.link;
    clearTimeout(this.timer);
    this.timer = this.link = this.dialing = undefined;
    if (!link) return;
    clearInterval(link.ticker);
    for (const entry of this.outbox.values()) entry.sent = false;
    link.close();
  }

  stop(state, detail) {
    this.leave();
    this.tell(state, detail);
  }
}

// A random part of 0.5 s, 1 s, 2 s … 20 s.
const jittered = (failures) => Math.random() * Math.min(20_000, 500 * 2 ** Math.min(failures, 6));

const target = (user, only, allBut) => ({
  number: 0, user, payload: 0, only: only && { devices: only }, all_but: allBut && { devices: allBut },
});
