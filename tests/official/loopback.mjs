// Loaded before every script: servers listen on 127.0.0.1 alone, directories and hosts of handles
// may be there as well, and handles are looked up at HANDLE_RESOLVER. With LIMITS_LOG rate limits are
// reached soon, and each answer is noted. Ends with whoever started it.
import dns from 'node:dns'
import fs from 'node:fs'
import net from 'node:net'
import { DidPlcResolver, DidWebResolver, HandleResolver } from '@atproto/identity'

dns.setDefaultResultOrder('ipv4first')

const listen = net.Server.prototype.listen
net.Server.prototype.listen = function (...given) {
  const asked = given[0]?.port === undefined ? { port: given[0] } : given[0]
  if (!/^\d+$/.test(asked.port)) return listen.apply(this, given)
  const ready = given.filter((each) => typeof each === 'function')
  return listen.call(this, { ...asked, port: Number(asked.port), host: '127.0.0.1' }, ...ready)
}

DidPlcResolver.prototype.resolveNoCheck = async function (did) {
  const answer = await fetch(new URL(`/${encodeURIComponent(did)}`, this.plcUrl))
  if (answer.status === 404) return null
  if (!answer.ok) throw new Error(`${did}: ${answer.status}`)
  return answer.json()
}

DidWebResolver.prototype.resolveNoCheck = async (did) => {
  const host = decodeURIComponent(did.slice('did:web:'.length))
  const answer = await fetch(`http://${host}/.well-known/did.json`)
  return answer.ok ? answer.json() : null
}

if (process.env.LIMITS_LOG) {
  const { RateLimiterMemory } = (await import('rate-limiter-flexible')).default
  const consume = RateLimiterMemory.prototype.consume
  const seen = new WeakSet()
  const note = (refused) => fs.appendFileSync(process.env.LIMITS_LOG, `${refused ? 'refused' : 'served'}\n`)
  RateLimiterMemory.prototype.consume = function (...given) {
    if (!seen.has(this)) {  // 12 repos and 6 other requests in 10 seconds
      seen.add(this)
      this.points = Math.ceil(this.points / 500)
      this.duration = Math.ceil(this.duration / 30)
    }
    const asked = consume.apply(this, given)
    asked.then(() => note(false), () => note(true))
    return asked
  }
}

HandleResolver.prototype.resolve = async (handle) => {
  const query = new URLSearchParams({ handle })
  const answer = await fetch(`${process.env.HANDLE_RESOLVER}/xrpc/com.atproto.identity.resolveHandle?${query}`)
  return answer.ok ? (await answer.json()).did : undefined
}

process.stdin.on('end', () => process.exit(1)).resume()
