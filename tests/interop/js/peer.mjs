// A js-libp2p peer on loopback. It says who it is in one JSON line, then takes a JSON command a line and answers each
// with a line of the same id: {"id": 1, "do": "ask", ...} -> {"id": 1, "ok": ...} or {"id": 1, "error": "..."}.
// It ends with its standard input. Bytes that are asked for are random, and only their sha256 leaves this process.

import { createHash, randomBytes } from 'node:crypto'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { identify } from '@libp2p/identify'
import { noise } from '@libp2p/noise'
import { ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { webSockets } from '@libp2p/websockets'
import { yamux } from '@libp2p/yamux'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'

const STREAMS_MAX = 1000 // of one protocol: 32 are taken and 64 opened when nothing is said
const PIECE_BYTES = 64 * 1024
const FEW = Buffer.from('a few bytes')

const node = await createLibp2p({
  addresses: { listen: ['/ip4/127.0.0.1/tcp/0', '/ip4/127.0.0.1/tcp/0/ws'] },
  transports: [tcp(), webSockets()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  services: { identify: identify(), ping: ping() },
  connectionManager: { inboundConnectionThreshold: 1000 } // 5 a second of one IP otherwise, and every test dials anew
})

const sha256 = (data) => createHash('sha256').update(data).digest('hex')

// Written out since the package's `onDrain` waits only the first time, and its iterator never ends when the other side
// closed before it began.

async function send (stream, data) {
  for (let start = 0; start < data.length; start += PIECE_BYTES) {
    if (!stream.send(data.subarray(start, start + PIECE_BYTES)) && stream.status === 'open') {
      await new Promise((resolve) => {
        for (const event of ['drain', 'close']) stream.addEventListener(event, resolve, { once: true })
      })
    }
  }
}

// Calls `take` with each piece; resolves to how it ended: 'end', 'reset' (by them), 'aborted' (by us), 'closed' (lost).
// What comes after the end is not taken, as by the package's own iterator: js loses the bytes of a frame with a FIN.
// A stream can have `ended` and still hold bytes, which the negotiation of its protocol had read and gave back.
function receive (stream, take) {
  return new Promise((resolve) => {
    let finished = stream.remoteWriteStatus === 'closed' && stream.status === 'open'
    let over = false
    const ended = () => {
      over = true
      resolve(finished && ['open', 'closed'].includes(stream.status) ? 'end' : stream.status)
    }
    const endedBefore = () => { if (stream.readableEnded && stream.readBufferLength === 0) ended() }
    endedBefore()
    stream.addEventListener('remoteCloseWrite', () => { finished = true })
    stream.addEventListener('end', ended)
    stream.addEventListener('close', ended)
    stream.addEventListener('message', (event) => {
      if (!over) take(event.data.subarray())
      endedBefore()
    })
  })
}

async function receiveAll (stream) {
  const pieces = []
  const ending = await receive(stream, (piece) => pieces.push(piece))
  return [Buffer.concat(pieces), ending]
}

async function receiveExactly (stream, count) {
  let left = count
  return new Promise((resolve, reject) => {
    receive(stream, (piece) => { if ((left -= piece.length) <= 0) resolve() })
      .then((ending) => reject(new Error(`it ended (${ending}) with ${left} of ${count} bytes to come`)))
  })
}

// What it serves.

const endings = []

const served = {
  '/test/echo/1': async (stream) => {
    let sending = Promise.resolve()
    await receive(stream, (piece) => { sending = sending.then(() => send(stream, piece)) })
    await sending
    await stream.close()
  },
  '/test/digest/1': async (stream) => { // answers only once it has all
    const [data] = await receiveAll(stream)
    stream.send(Buffer.from(sha256(data)))
    await stream.close()
  },
  '/test/pause/1': async (stream) => { // takes nothing for a while, then is a digest
    stream.pause()
    await sleep(Number(process.argv[2] ?? 7000))
    stream.resume()
    await served['/test/digest/1'](stream)
  },
  '/test/reset/1': async (stream) => {
    await receiveExactly(stream, 1)
    stream.abort(new Error('this protocol resets'))
  },
  '/test/watch/1': async (stream) => {
    stream.send(FEW)
    endings.push(await receive(stream, () => {}))
  }
}
for (const [protocol, handler] of Object.entries(served)) {
  const contained = (stream) => handler(stream).catch((error) => console.error(protocol, error))
  await node.handle(protocol, contained, { maxInboundStreams: STREAMS_MAX, maxOutboundStreams: STREAMS_MAX })
}

// What it can be told.

const connectionTo = (peer) => {
  const [connection] = node.getConnections().filter((each) => each.remotePeer.toString() === peer)
  if (connection == null) throw new Error(`not connected to ${peer}`)
  return connection
}
const open = ({ peer, protocol }) => connectionTo(peer).newStream(protocol, { maxOutboundStreams: STREAMS_MAX })

const commands = {
  dial: async ({ address }) => (await node.dial(multiaddr(address))).remotePeer.toString(),
  ping: async ({ peer }) => node.services.ping.ping(connectionTo(peer).remotePeer),
  protocols: async ({ peer }) => (await node.peerStore.get(connectionTo(peer).remotePeer)).protocols,
  connected: async () => node.getPeers().map(String),
  endings: async () => endings.splice(0),

  // Sends `bytes` while it reads, closes its write end, and reads to the end.
  ask: async ({ bytes, ...to }) => {
    const stream = await open(to)
    const question = randomBytes(bytes)
    const answered = receiveAll(stream)
    await send(stream, question)
    await stream.close()
    const [answer, ending] = await answered
    const text = answer.length <= 64 ? answer.toString() : ''
    return { asked: sha256(question), answered: sha256(answer), bytes: answer.length, text, ending }
  },
  // Opens all streams before the first is used, and ends none before the last was.
  crowd: async ({ streams, ...to }) => {
    const opened = await Promise.all(Array.from({ length: streams }, () => open(to)))
    await Promise.all(opened.map(async (stream) => {
      const echoed = receiveExactly(stream, FEW.length)
      stream.send(FEW)
      await echoed
    }))
    await Promise.all(opened.map((stream) => stream.close()))
    return opened.length
  },
  // Sends a little and says how the other side ended the stream.
  ending: async (to) => {
    const stream = await open(to)
    const ended = receive(stream, () => {})
    stream.send(FEW)
    return ended
  },
  // Waits for a byte from the other side, then resets the stream.
  reset: async (to) => {
    const stream = await open(to)
    const echoed = receiveExactly(stream, 1)
    stream.send(FEW)
    await echoed
    stream.abort(new Error('told to reset'))
  },
  close: async ({ peer }) => connectionTo(peer).close(),
  abort: async ({ peer }) => connectionTo(peer).abort(new Error('told to abort'))
}

const say = (line) => process.stdout.write(JSON.stringify(line) + '\n')
say({ peer: node.peerId.toString(), addresses: node.getMultiaddrs().map(String) })

createInterface({ input: process.stdin }).on('line', (line) => {
  const { id, do: what, ...details } = JSON.parse(line)
  commands[what](details).then(
    (ok) => say({ id, ok: ok ?? null }),
    (error) => {
      console.error(what, error)
      say({ id, error: `${error.name}: ${error.message}` })
    }
  )
}).on('close', () => process.exit(0))
