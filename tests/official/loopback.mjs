// Loaded before every script: servers listen on 127.0.0.1 alone, directories and hosts of handles
// may be there as well, and handles are looked up at HANDLE_RESOLVER. Ends with whoever started it.
import dns from 'node:dns'
import net from 'node:net'
import { DidPlcResolver, HandleResolver } from '@atproto/identity'

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

HandleResolver.prototype.resolve = async (handle) => {
  const query = new URLSearchParams({ handle })
  const answer = await fetch(`${process.env.HANDLE_RESOLVER}/xrpc/com.atproto.identity.resolveHandle?${query}`)
  return answer.ok ? (await answer.json()).did : undefined
}

process.stdin.on('end', () => process.exit(1)).resume()
