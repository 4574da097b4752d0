// node-coap against the gateway: argument 1 is its address, host:port. Prints what it got as JSON.

'use strict'

const coap = require('coap')

const base = new URL(`coap://${process.argv[2]}`)
const hostname = base.hostname.replace(/^\[|\]$/g, '')
const family = { hostname, port: Number(base.port) }
const newAgent = () => new coap.Agent({ type: hostname.includes(':') ? 'udp6' : 'udp4' })
const agent = newAgent()

function send (options, payload) {
  return new Promise((resolve, reject) => {
    const request = coap.request({ ...family, agent, ...options })
    request.on('response', resolve)
    request.on('error', reject)
    request.end(payload)
  })
}

async function main () {
  const got = {}
  const format = { options: { 'Content-Format': 'application/json' } }
  got.post = (await send({ method: 'POST', pathname: '/node/con', query: 'ep=node', ...format }, '{"n":1}')).code
  got.non = (await send({ method: 'POST', pathname: '/node/non', query: 'ep=node', confirmable: false }, 'non')).code
  const value = await send({ method: 'GET', pathname: '/node/con' })
  got.get = [value.code, value.payload.toString()]
  got.format = value.headers['Content-Format']
  const big = Buffer.alloc(5000, 'node')
  got.upload = (await send({ method: 'PUT', pathname: '/node/big', query: 'ep=node', options: { Block1: Buffer.of(6) } }, big)).code
  got.download = (await send({ method: 'GET', pathname: '/node/big' })).payload.equals(big)
  const core = await send({ method: 'GET', pathname: '/.well-known/core' })
  got.core = core.code

  got.observed = []
  // Of its own, as the end of an observation ends its agent.
  const stream = await send({ method: 'GET', pathname: '/node/observed', observe: true, agent: newAgent() })
  const enough = new Promise((resolve) => stream.on('data', (chunk) => {
    got.observed.push(chunk.toString())
    if (got.observed.includes('three')) resolve()
  }))
  for (const text of ['one', 'two', 'three']) {
    await send({ method: 'POST', pathname: '/node/observed', query: 'ep=node' }, text)
  }
  await enough
  stream.close()
  got.deleted = (await send({ method: 'DELETE', pathname: '/node/con', query: 'ep=node' })).code
  got.gone = (await send({ method: 'GET', pathname: '/node/con' })).code
  console.log(JSON.stringify(got))
  process.exit(0)
}

main().catch((error) => {
  console.error(error)
  process.exit(1)
})
