// One official service: node --import ./loopback.mjs service.mjs KIND OPTIONS (JSON).
// Prints one line of JSON when it is ready, and ends at SIGTERM.
import fs from 'node:fs'
import http from 'node:http'

const kinds = { plc, pds, ozone, indexer, reader, migrate, identity, repo }
const [kind, text] = process.argv.slice(2)
const { stop, ...ready } = await kinds[kind](JSON.parse(text))
console.log(JSON.stringify(ready))
if (!stop) process.exit(0)
process.on('SIGTERM', () => stop().finally(() => process.exit(0)))

async function plc({ port }) {
  const { Database, PlcServer } = await import('@did-plc/server')
  const server = PlcServer.create({ db: Database.mock(), port })
  await server.start()
  return { stop: () => server.destroy() }
}

async function pds({ environment }) {
  const { PDS } = await import('@atproto/pds')
  const server = await PDS.fromEnv(environment)
  await server.start()
  return { stop: () => server.destroy() }
}

async function ozone({ environment, labeler }) {
  const { Database, OzoneService, envToCfg, envToSecrets } = await import('@atproto/ozone')
  const { Client } = await import('@did-plc/lib')
  const { Secp256k1Keypair } = await import('@atproto/crypto')
  const database = new Database({ url: environment.dbPostgresUrl, schema: environment.dbPostgresSchema })
  await database.migrateToLatestOrThrow()
  await database.close()
  const key = await Secp256k1Keypair.import(environment.signingKeyHex)
  const directory = new Client(environment.didPlcUrl)
  let serverDid = labeler
  if (!serverDid) {
    const handle = 'labels.test'
    serverDid = await directory.createDid({ signingKey: key.did(), handle, pds: environment.publicUrl, rotationKeys: [key.did()], signer: key })
    await directory.updateData(serverDid, key, (last) => ({
      ...last,
      verificationMethods: { ...last.verificationMethods, atproto_label: key.did() },
      services: { ...last.services, atproto_labeler: { type: 'AtprotoLabeler', endpoint: environment.publicUrl } },
    }))
  }
  const complete = { ...environment, serverDid }
  const server = await OzoneService.create(envToCfg(complete), envToSecrets(complete))
  await server.start()
  return { did: serverDid, stop: () => server.destroy() }
}

// The official indexer, one event at a time: by itself it handles accounts side by side, and its
// rows depend on which is faster. Errors are written to a file, a line each. By itself it begins with
// the first event; `cursors` has others.
async function indexer({ databaseUrl, schema, plcUrl, services, port, errors, bsync, cursors = {} }) {
  const { Database, RepoSubscription, BsyncSubscription } = await import('@atproto/bsky')
  const { IdResolver, MemoryCache } = await import('@atproto/identity')
  const { MemoryRunner } = await import('@atproto/sync')
  const db = new Database({ url: databaseUrl, schema, poolSize: 10 })
  await db.migrateToLatestOrThrow()
  const idResolver = new IdResolver({ plcUrl, didCache: new MemoryCache() })
  let last = Promise.resolve()
  let events = 0
  MemoryRunner.prototype.trackEvent = function (did, seq, handle) {
    last = last.then(handle).catch((error) => note(did, error)).then(async () => {
      for (const each of subscriptions) await each.background.processAll()
      this.cursor = seq
      events += 1
    })
    return last
  }
  MemoryRunner.prototype.getCursor = function () {
    const { service } = subscriptions.find((each) => each.current?.runner === this)
    return this.cursor || cursors[service] || 0
  }
  const note = (subject, error) => fs.appendFileSync(errors, JSON.stringify({ subject: String(subject), error: `${error.message}: ${error.cause?.message ?? ''}` }) + '\n')
  const subscriptions = services.map((service) => new RepoSubscription({ service, db, idResolver }))
  for (const { indexingSvc } of subscriptions) {
    for (const name of ['indexRecord', 'deleteRecord', 'indexHandle', 'updateActorStatus', 'deleteActor']) {
      const method = indexingSvc[name].bind(indexingSvc)
      indexingSvc[name] = (subject, ...rest) => method(subject, ...rest).catch((error) => {
        note(subject, error)
        throw error
      })
    }
  }
  for (const each of subscriptions) void each.start()
  const private_ = bsync && new BsyncSubscription({ config: bsync, db })
  private_?.start()
  const server = http.createServer((asked, answer) => {
    if (asked.method === 'POST') {  // the stream at this place is read from its beginning again
      const { current } = subscriptions[Number(asked.url.slice(1))]
      current.runner.cursor = 0
    }
    answer.setHeader('content-type', 'application/json')
    const reached = Object.fromEntries(subscriptions.map((each, index) => [services[index], each.getCursor()]))
    answer.end(JSON.stringify({ cursors: reached, events, private: private_?.cursors }))
  })
  server.listen(port)
  const stop = async () => {
    for (const each of [...subscriptions, private_]) await each?.destroy()
    await db.close()
  }
  return { stop }
}

// The official reader of bsync alone. It knows no cursor: each start begins with the first operation.
async function reader({ databaseUrl, schema, bsync }) {
  const { Database, BsyncSubscription } = await import('@atproto/bsky')
  const db = new Database({ url: databaseUrl, schema, poolSize: 3 })
  await db.migrateToLatestOrThrow()
  const subscription = new BsyncSubscription({ config: bsync, db })
  subscription.start()
  return { stop: () => subscription.destroy().then(() => db.close()) }
}

// The official indexing of a whole repo, one record after the other.
async function repo({ databaseUrl, schema, plcUrl, did, errors }) {
  const { Database, RepoSubscription } = await import('@atproto/bsky')
  const { IdResolver } = await import('@atproto/identity')
  const db = new Database({ url: databaseUrl, schema, poolSize: 10 })
  const subscription = new RepoSubscription({ service: '', db, idResolver: new IdResolver({ plcUrl }) })
  const { indexingSvc, background } = subscription
  const indexRecord = indexingSvc.indexRecord.bind(indexingSvc)
  let last = Promise.resolve()
  let records = 0
  indexingSvc.indexRecord = (uri, ...rest) => {
    last = last.then(() => indexRecord(uri, ...rest)).catch((error) => {
      fs.appendFileSync(errors, JSON.stringify({ subject: String(uri), error: `${error.message}: ${error.cause?.message ?? ''}` }) + '\n')
    }).then(() => background.processAll())
    records += 1
    return last
  }
  await indexingSvc.indexRepo(did)
  await background.processAll()
  await db.close()
  return { records }
}

async function migrate({ databaseUrl, schema }) {
  const { Database } = await import('@atproto/bsky')
  const db = new Database({ url: databaseUrl, schema })
  const results = await db.migrateToLatestOrThrow().finally(() => db.close())
  return { migrated: results.map((each) => each.migrationName) }
}

// An update of a DID document: keys by their name, as did:key or as a secret in hex.
async function identity({ plcUrl, did, signer, keys = {}, pds, handle, rotation }) {
  const { Client } = await import('@did-plc/lib')
  const { Secp256k1Keypair } = await import('@atproto/crypto')
  const named = async (key) => key.startsWith('did:') ? key : (await Secp256k1Keypair.import(key)).did()
  const methods = {}
  for (const name in keys) methods[name] = await named(keys[name])
  const rotationKeys = rotation && [await named(rotation)]
  await new Client(plcUrl).updateData(did, await Secp256k1Keypair.import(signer), (last) => ({
    ...last,
    rotationKeys: rotationKeys ?? last.rotationKeys,
    verificationMethods: { ...last.verificationMethods, ...methods },
    services: pds ? { ...last.services, atproto_pds: { type: 'AtprotoPersonalDataServer', endpoint: pds } } : last.services,
    alsoKnownAs: handle ? [`at://${handle}`] : last.alsoKnownAs,
  }))
  return {}
}
