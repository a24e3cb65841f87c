// A Helia node on loopback, alone: no bootstrap, no routers, no gateways, no discovery. It says who it is in one JSON
// line, then takes a JSON command a line and answers each with a line of the same id, as peer.mjs does:
// {"id": 1, "do": "add", ...} -> {"id": 1, "ok": ...} or {"id": 1, "error": "..."}. It ends with its standard input.

import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { open } from 'node:fs/promises'
import { createInterface } from 'node:readline'
import { withBitswap } from '@helia/bitswap'
import { withLibp2pLight } from '@helia/libp2p'
import { unixfs } from '@helia/unixfs'
import { identify } from '@libp2p/identify'
import { noise } from '@libp2p/noise'
import { tcp } from '@libp2p/tcp'
import { yamux } from '@libp2p/yamux'
import { multiaddr } from '@multiformats/multiaddr'
import { createHeliaLight } from 'helia'
import { fixedSize } from 'ipfs-unixfs-importer/chunker'
import { balanced } from 'ipfs-unixfs-importer/layout'
import { CID } from 'multiformats/cid'

const helia = await withBitswap(withLibp2pLight(createHeliaLight(), {
  addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] },
  transports: [tcp()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  services: { identify: identify() },
  connectionManager: { inboundConnectionThreshold: 1000 } // 5 a second of one IP otherwise, and every test dials anew
})).start()
const files = unixfs(helia)
const { bitswap } = helia.blockBrokers.find((broker) => broker.name === 'bitswap')

const now = () => performance.now() / 1000
const within = (seconds) => ({ signal: AbortSignal.timeout(seconds * 1000) })

const commands = {
  // The file at `path` as blocks of its own; the numbers are those of an IPFS profile.
  add: async ({ path, leaf_bytes: chunkSize, links_per_node: maxChildrenPerNode, raw_leaves: rawLeaves, version }) => {
    const begun = now()
    const cid = await files.addByteStream(createReadStream(path, { highWaterMark: 1024 * 1024 }), {
      cidVersion: version,
      rawLeaves,
      chunker: fixedSize({ chunkSize }),
      layout: balanced({ maxChildrenPerNode })
    })
    return { cid: cid.toString(), seconds: now() - begun }
  },
  dial: async ({ address }) => (await helia.libp2p.dial(multiaddr(address))).remotePeer.toString(),
  connected: async () => helia.libp2p.getPeers().map(String),

  // The file of `cid`, by bitswap of whoever is connected, into `path`.
  fetch: async ({ cid, path, seconds }) => {
    const begun = now()
    const digest = createHash('sha256')
    const file = await open(path, 'w')
    let bytes = 0
    try {
      for await (const piece of files.cat(CID.parse(cid), within(seconds))) {
        digest.update(piece)
        await file.writev([piece])
        bytes += piece.length
      }
    } finally {
      await file.close()
    }
    return { bytes, sha256: digest.digest('hex'), seconds: now() - begun }
  },
  // Asks `peer` with a WANT-HAVE; {has: false} for a DONT-HAVE. `block_bytes` is null where no block came with it.
  ask: async ({ cid, peer, seconds }) => {
    const [peerId] = helia.libp2p.getPeers().filter((each) => each.toString() === peer)
    const { has, block } = await bitswap.wantList.wantSessionPresence(CID.parse(cid), peerId, within(seconds))
    return { has, block_bytes: block?.length ?? null }
  },
  has: async ({ cid }) => helia.blockstore.has(CID.parse(cid))
}

const say = (line) => process.stdout.write(JSON.stringify(line) + '\n')
say({ peer: helia.libp2p.peerId.toString(), addresses: helia.libp2p.getMultiaddrs().map(String) })

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
