#!lua name=headwater

-- The Headwater function library: every write to a tenant's log goes through here, one atomic step per hop.
--
-- Calling convention, the same for all functions:
--   KEYS[1]  the shard's key prefix, such as hw:{s07} (for `slots`, hw:{agents}). It carries the hash tag, so the whole call runs on the node
--            that owns the shard; all other keys are built from it below and in streams/keys.py.
--   ARGV[1]  MessagePack: a list of items, each a map. Items are independent of each other.
--   returns  MessagePack: a list with one reply per item, in order. A reply of {"error", text} means that this item
--            wrote nothing; the other items are not affected.
--
-- Redis does not undo what a function wrote before it failed. So whatever can fail is read first (`need`), and then
-- nothing fails any more.
--
-- Keys of a shard S, and of a tenant T in it:
--   S:ready:<reader>     zset  tenant -> ms from which it may be leased: its turn, or the end of a running lease
--   S:ready:agent:<id>   zset  tenant -> turn; the tenants with calls waiting for that agent
--   S:bell:<reader>      list  holds one token per kind of thing that is ready; idle readers block on it. For workers
--                              the token is the agent that has calls waiting, for log readers it is "1"
--   S:leases             zset  tenant|call -> ms at which the worker's lease on that call ends
--   S:turn               counter that orders the tenants in ready:agent:<id>
--   S:T:log              stream of facts
--   S:T:readers          hash  <reader> -> position read so far, <reader>:epoch -> number of the newest lease
--   S:T:state            hash  task -> the decider's folded state, while the task is open
--   S:T:queue:<agent>    zset  call -> priority rank and age
--   S:T:call:<id>        hash  body, agent, rank, owner, delivery, cancelled; s<key> -> position of a recorded step
--   S:T:dedup:<key>      string "position fingerprint task" of an accepted submission, expires
--   S:T:blob:<sha256>    string one large content
--   S:T:parked           stream of entries that a reader could not handle
--   S:T:done             channel on which the end of a task is announced: "task position"
-- Keys of the prefix hw:{agents}, A:
--   A:workers:<agent>    zset  worker -> ms at which its loan of slots ends unless it renews it
--   A:slots:<agent>      hash  worker -> number of slots, each the right to run that agent once at a time

local VERSION = 4
local LOG_READERS = {'decider', 'projector'}
local RANK = 2 ^ 44  -- a rank's share of a queue score: above it the priority, below it the turn

-- The text of an error that `pcall` caught: redis.call raises a table, Lua a string.
local function text_of(caught) return type(caught) == 'table' and (caught.err or 'unknown') or tostring(caught) end

local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- Raises an error while nothing is written yet if a key that is about to be written holds another type.
local SIZE = {hash = 'HLEN', list = 'LLEN', stream = 'XLEN', string = 'STRLEN', zset = 'ZCARD'}
local function need(kind, key) redis.call(SIZE[kind], key) end

-- What `write_facts` and waking the log's readers need.
local FACT_SIZE = 11
local function need_log(S, tenant, facts)
  need('stream', S .. ':' .. tenant .. ':log')
  for _, f in ipairs(facts or {}) do
    if #f ~= FACT_SIZE then error('a fact has ' .. FACT_SIZE .. ' values, not ' .. #f, 0) end
  end
  for _, reader in ipairs(LOG_READERS) do
    need('zset', S .. ':ready:' .. reader)
    need('list', S .. ':bell:' .. reader)
  end
end

local function ring(S, reader, token)
  local bell = S .. ':bell:' .. reader
  if not redis.call('LPOS', bell, token) then redis.call('LPUSH', bell, token) end
end

-- Marks the tenant as having something to read. A tenant that is ready or leased already is left as it is: its
-- reader looks again when it commits.
local function wake(S, reader, tenant, now)
  if redis.call('ZADD', S .. ':ready:' .. reader, 'NX', now, tenant) == 1 then ring(S, reader, '1') end
end

-- Appends entries to the tenant's log, with the blobs they refer to. Returns their positions.
local function write_facts(S, tenant, facts, blobs)
  local log = S .. ':' .. tenant .. ':log'
  local positions = {}
  for i, f in ipairs(facts or {}) do
    positions[i] = redis.call('XADD', log, '*', 'id', f[1], 'type', f[2], 'v', f[3], 'session', f[4], 'task', f[5],
      'priority', f[6], 'source', f[7], 'chain', f[8], 'parent', f[9], 'at', f[10], 'body', f[11])
  end
  for _, blob in ipairs(blobs or {}) do
    redis.call('SET', S .. ':' .. tenant .. ':blob:' .. blob[1], blob[2], 'NX')
  end
  return positions
end

local function enqueue(S, tenant, call, agent, score)
  redis.call('ZADD', S .. ':' .. tenant .. ':queue:' .. agent, score, call)
  local turn = redis.call('INCR', S .. ':turn')
  redis.call('ZADD', S .. ':ready:agent:' .. agent, 'NX', turn, tenant)
  ring(S, 'worker', agent)
end

-- append: a producer's facts, once per idempotency key.
--   item   {tenant, key, fingerprint, ttl_ms, task, fact, blobs}
--   reply  {"new", position, task} | {"duplicate", position, task} | {"conflict", position, task}
local function append(S, item)
  local dedup = S .. ':' .. item.tenant .. ':dedup:' .. item.key
  local seen = redis.call('GET', dedup)
  if seen then
    local position, fingerprint, task = string.match(seen, '^(%S+) (%S+) (.*)$')
    return {fingerprint == item.fingerprint and 'duplicate' or 'conflict', position, task}
  end
  need_log(S, item.tenant, {item.fact})
  local position = write_facts(S, item.tenant, {item.fact}, item.blobs)[1]
  redis.call('SET', dedup, position .. ' ' .. item.fingerprint .. ' ' .. item.task, 'PX', item.ttl_ms)
  local now = now_ms()
  for _, reader in ipairs(LOG_READERS) do wake(S, reader, item.tenant, now) end
  return {'new', position, item.task}
end

-- The next batch of one tenant for a log reader, or nil when nothing of what it has not read is wanted.
local function lease_tenant(S, item, tenant, now, room)
  local ready = S .. ':ready:' .. item.reader
  local readers = S .. ':' .. tenant .. ':readers'
  local from = redis.call('HGET', readers, item.reader) or '0-0'
  local entries = redis.call('XRANGE', S .. ':' .. tenant .. ':log', '(' .. from, '+', 'COUNT', room)
  local to = from
  local wanted, tasks, known = {}, {}, {}
  for _, entry in ipairs(entries) do
    to = entry[1]
    local kind, task
    for i = 1, #entry[2], 2 do
      local name = entry[2][i]
      if name == 'type' then kind = entry[2][i + 1] elseif name == 'task' then task = entry[2][i + 1] end
    end
    if not item.types or (kind and item.types[kind]) then
      wanted[#wanted + 1] = entry
      if item.states and task and not known[task] then
        known[task] = true
        tasks[#tasks + 1] = task
      end
    end
  end
  if #wanted == 0 then
    redis.call('HSET', readers, item.reader, to)
    if #entries < room then redis.call('ZREM', ready, tenant) else redis.call('ZADD', ready, now, tenant) end
    return nil
  end
  local states = {}
  if #tasks > 0 then
    local found = redis.call('HMGET', S .. ':' .. tenant .. ':state', unpack(tasks))
    for i, task in ipairs(tasks) do
      if found[i] then
        states[#states + 1] = task
        states[#states + 1] = found[i]
      end
    end
  end
  local epoch = redis.call('HINCRBY', readers, item.reader .. ':epoch', 1)
  redis.call('ZADD', ready, now + item.lease_ms, tenant)
  return {tenant, epoch, from, to, wanted, states}
end

-- lease: the next ready tenants for a log reader, each with a batch of what it has not read.
--   item   {reader, lease_ms, max_tenants, max_entries, types (set; absent: all), states (bool)}
--   reply  {{{tenant, epoch, from, to, {{position, {field, value, …}}, …}, {task, state, …}}, …}, {{tenant, error}, …}}
-- A leased tenant stays in `ready` with the lease's end as its score, so a dead reader's tenants become ready again
-- by themselves. Entries whose type is not wanted are read past here and not sent. A tenant with a damaged key is
-- named, and left alone for the length of a lease.
local function lease(S, item)
  local ready = S .. ':ready:' .. item.reader
  local now = now_ms()
  local batches, damaged = {}, {}
  local room = item.max_entries
  for _, tenant in ipairs(redis.call('ZRANGE', ready, '-inf', now, 'BYSCORE', 'LIMIT', 0, item.max_tenants)) do
    if room <= 0 then break end
    local ok, batch = pcall(lease_tenant, S, item, tenant, now, room)
    if not ok then
      redis.call('ZADD', ready, now + item.lease_ms, tenant)
      damaged[#damaged + 1] = {tenant, text_of(batch)}
    elseif batch then
      batches[#batches + 1] = batch
      room = room - #batch[5]
    end
  end
  if redis.call('ZCOUNT', ready, '-inf', now) > 0 then ring(S, item.reader, '1') end
  return {batches, damaged}
end

-- A cancelled call that nobody runs is gone; one that a worker runs is marked, for the worker to see when it renews.
local function cancel(S, tenant, id)
  local call = S .. ':' .. tenant .. ':call:' .. id
  local found = redis.call('HMGET', call, 'agent', 'delivery')
  if not found[1] then return end
  if found[2] then
    redis.call('HSET', call, 'cancelled', 1)
  else
    redis.call('ZREM', S .. ':' .. tenant .. ':queue:' .. found[1], id)
    redis.call('DEL', call)
  end
end

local function need_commit(S, item)
  local prefix = S .. ':' .. item.tenant
  need_log(S, item.tenant, item.facts)
  if #(item.states or {}) + #(item.ended or {}) > 0 then need('hash', prefix .. ':state') end
  if #(item.calls or {}) > 0 then
    need('list', S .. ':bell:worker')
    if not tonumber(redis.call('GET', S .. ':turn') or 0) then error('the counter of turns is not a number', 0) end
  end
  for _, call in ipairs(item.calls or {}) do
    need('hash', prefix .. ':call:' .. call[1])
    need('zset', prefix .. ':queue:' .. call[2])
    need('zset', S .. ':ready:agent:' .. call[2])
  end
  for _, id in ipairs(item.cancels or {}) do
    local call = prefix .. ':call:' .. id
    need('hash', call)
    need('zset', prefix .. ':queue:' .. (redis.call('HGET', call, 'agent') or ''))
  end
  for _, fields in ipairs(item.parked or {}) do
    if #fields == 0 or #fields % 2 == 1 then error('a parked entry has names and values in pairs', 0) end
    need('stream', prefix .. ':parked')
  end
end

-- commit: what a log reader made of its batch: facts, calls, states and the new position, all or nothing.
--   item   {reader, tenant, epoch, from, to, facts, blobs, calls {{id, agent, rank, body}}, states {{task, json}},
--           ended {task}, parked {{field, value, …}}, notify {{task, index of its fact}}, cancels {call}}
--   reply  1 | {"stale"}   stale: the lease ended, or the tenant was leased again; nothing was written
local function commit(S, item)
  local now = now_ms()
  local prefix = S .. ':' .. item.tenant
  local ready, readers = S .. ':ready:' .. item.reader, prefix .. ':readers'
  local held = redis.call('HMGET', readers, item.reader, item.reader .. ':epoch')
  local ends = tonumber(redis.call('ZSCORE', ready, item.tenant) or 0)
  if (held[1] or '0-0') ~= item.from or tonumber(held[2]) ~= item.epoch or ends <= now then return {'stale'} end

  local log = prefix .. ':log'
  local newest = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
  local position = item.to
  local caught_up = not newest or newest[1] == item.to
  need_commit(S, item)
  local positions = write_facts(S, item.tenant, item.facts, item.blobs)
  -- With nothing in between, the reader need not read its own facts again.
  if caught_up and #positions > 0 then position = positions[#positions] end
  redis.call('HSET', readers, item.reader, position)
  if caught_up then redis.call('ZREM', ready, item.tenant) else redis.call('ZADD', ready, now, item.tenant) end

  for _, entry in ipairs(item.states or {}) do redis.call('HSET', prefix .. ':state', entry[1], entry[2]) end
  for _, task in ipairs(item.ended or {}) do redis.call('HDEL', prefix .. ':state', task) end
  for _, call in ipairs(item.calls or {}) do
    local score = call[3] * RANK + redis.call('INCR', S .. ':turn')
    redis.call('HSET', prefix .. ':call:' .. call[1], 'agent', call[2], 'rank', score, 'body', call[4])
    enqueue(S, item.tenant, call[1], call[2], score)
  end
  for _, id in ipairs(item.cancels or {}) do cancel(S, item.tenant, id) end
  for _, fields in ipairs(item.parked or {}) do redis.call('XADD', prefix .. ':parked', '*', unpack(fields)) end
  for _, entry in ipairs(item.notify or {}) do
    redis.call('PUBLISH', prefix .. ':done', entry[1] .. ' ' .. positions[entry[2]])
  end
  if #positions > 0 then
    for _, reader in ipairs(LOG_READERS) do
      if reader ~= item.reader then wake(S, reader, item.tenant, now) end
    end
  end
  return 1
end

-- The next call of one tenant for an agent, as `take` replies it, or nil when the queue held a call that is gone.
local function take_one(S, worker, tenant, agent, ends)
  local queue = S .. ':' .. tenant .. ':queue:' .. agent
  local ready = S .. ':ready:agent:' .. agent
  local id = redis.call('ZPOPMIN', queue)[1]
  if redis.call('EXISTS', queue) == 1 then
    redis.call('ZADD', ready, redis.call('INCR', S .. ':turn'), tenant)
  else
    redis.call('ZREM', ready, tenant)
  end
  local call = S .. ':' .. tenant .. ':call:' .. (id or '')
  if not id or redis.call('HLEN', call) == 0 then return nil end
  local delivery = redis.call('HINCRBY', call, 'delivery', 1)
  redis.call('HSET', call, 'owner', worker)
  redis.call('ZADD', S .. ':leases', ends, tenant .. '|' .. id)
  local steps = {}
  if delivery > 1 then
    local fields = redis.call('HGETALL', call)
    for i = 1, #fields, 2 do
      local key = string.match(fields[i], '^s(.+)$')
      if key then
        steps[#steps + 1] = key
        steps[#steps + 1] = fields[i + 1]
      end
    end
  end
  local found = redis.call('HMGET', call, 'body', 'cancelled')
  return {tenant, agent, id, delivery, found[1], steps, found[2] and 1 or 0}
end

-- take: the next calls for a worker's free places, one tenant after the other; within a tenant by priority, then age.
--   item   {worker, lease_ms, wants {{agent, count, ring (0 or 1: another worker could take what is left)}}}
--   reply  {{{tenant, agent, call, delivery, body, {step key, position, …}, cancelled (0 or 1)}, …}, {{tenant, error}, …}}
-- A tenant whose queue is damaged is named, and loses its turn.
local function take(S, item)
  local ends = now_ms() + item.lease_ms
  local taken, damaged = {}, {}
  for _, want in ipairs(item.wants) do
    local agent, count = want[1], want[2]
    local ready = S .. ':ready:agent:' .. agent
    while count > 0 do
      local tenant = redis.call('ZRANGE', ready, 0, 0)[1]
      if not tenant then break end
      local ok, call = pcall(take_one, S, item.worker, tenant, agent, ends)
      if not ok then
        redis.call('ZREM', ready, tenant)
        damaged[#damaged + 1] = {tenant, text_of(call)}
      elseif call then
        taken[#taken + 1] = call
        count = count - 1
      end
    end
    if want[3] == 1 and redis.call('EXISTS', ready) == 1 then ring(S, 'worker', agent) end
  end
  return {taken, damaged}
end

-- Does this worker still hold this delivery of the call? A lease that ended does not count, even if nobody took over.
local function holds(S, item, now)
  local owner = redis.call('HMGET', S .. ':' .. item.tenant .. ':call:' .. item.call, 'owner', 'delivery')
  local ends = redis.call('ZSCORE', S .. ':leases', item.tenant .. '|' .. item.call)
  return owner[1] == item.worker and tonumber(owner[2]) == item.delivery and ends and tonumber(ends) > now
end

-- record: facts of a call that goes on, such as a finished step, once per key. Renews the lease.
--   item   {tenant, call, worker, delivery, lease_ms, key, facts, blobs}
--   reply  {"recorded", position of the key's fact} | {"stale"}
local function record(S, item)
  local now = now_ms()
  if not holds(S, item, now) then return {'stale'} end
  local call = S .. ':' .. item.tenant .. ':call:' .. item.call
  local position = redis.call('HGET', call, 's' .. item.key)
  if not position then
    need_log(S, item.tenant, item.facts)
    local positions = write_facts(S, item.tenant, item.facts, item.blobs)
    position = positions[#positions]
    redis.call('HSET', call, 's' .. item.key, position)
    wake(S, 'projector', item.tenant, now)
  end
  redis.call('ZADD', S .. ':leases', now + item.lease_ms, item.tenant .. '|' .. item.call)
  return {'recorded', position}
end

-- renew: keeps a call that takes long. item {tenant, call, worker, delivery, lease_ms}; reply 1 | {"stale"} |
-- {"cancelled"}: still held, but its task has ended: stop, and settle.
local function renew(S, item)
  local now = now_ms()
  if not holds(S, item, now) then return {'stale'} end
  redis.call('ZADD', S .. ':leases', now + item.lease_ms, item.tenant .. '|' .. item.call)
  if redis.call('HEXISTS', S .. ':' .. item.tenant .. ':call:' .. item.call, 'cancelled') == 1 then
    return {'cancelled'}
  end
  return 1
end

-- settle: the end of a call: its last facts are appended and the call is gone.
--   item   {tenant, call, worker, delivery, facts, blobs}
--   reply  1 | {"stale"}
local function settle(S, item)
  local now = now_ms()
  if not holds(S, item, now) then return {'stale'} end
  need_log(S, item.tenant, item.facts)
  write_facts(S, item.tenant, item.facts, item.blobs)
  redis.call('DEL', S .. ':' .. item.tenant .. ':call:' .. item.call)
  redis.call('ZREM', S .. ':leases', item.tenant .. '|' .. item.call)
  for _, reader in ipairs(LOG_READERS) do wake(S, reader, item.tenant, now) end
  return 1
end

-- reclaim: puts calls whose lease ended back in their queue, at their old place. Their workers can no longer settle.
--   item   {max, agents}
--   reply  {number of calls put back, {agent, …}: those of `agents` that calls are waiting for}
local function reclaim(S, item)
  local expired = redis.call('ZRANGE', S .. ':leases', '-inf', now_ms(), 'BYSCORE', 'LIMIT', 0, item.max)
  for _, member in ipairs(expired) do
    redis.call('ZREM', S .. ':leases', member)
    local tenant, id = string.match(member, '^(.-)|(.+)$')
    local call = S .. ':' .. tenant .. ':call:' .. id
    local found = redis.call('HMGET', call, 'agent', 'rank')
    if found[1] then
      redis.call('HDEL', call, 'owner')
      enqueue(S, tenant, id, found[1], found[2])
    end
  end
  local waiting = {}
  for _, agent in ipairs(item.agents or {}) do
    if redis.call('EXISTS', S .. ':ready:agent:' .. agent) == 1 then waiting[#waiting + 1] = agent end
  end
  return {#expired, waiting}
end

-- slots: a worker says how many runs of each agent it wants to have at once, `busy` of them running; all workers
-- together get no more than the agent's limit, and those that want more share it. Said again, it renews the loan;
-- said with 0, it ends it. A worker that says nothing for `lease_ms` has none.
--   item   {worker, lease_ms, agents {{agent, busy, wanted, limit}}}     (KEYS[1] is hw:{agents})
--   reply  {{granted, left for others}, …}, in the order of `agents`
local function slots(A, item)
  local now = now_ms()
  local replies = {}
  for i, asked in ipairs(item.agents) do
    local agent, busy, wanted, limit = asked[1], asked[2], asked[3], asked[4]
    local workers, held = A .. ':workers:' .. agent, A .. ':slots:' .. agent
    for _, dead in ipairs(redis.call('ZRANGE', workers, '-inf', now, 'BYSCORE')) do
      redis.call('ZREM', workers, dead)
      redis.call('HDEL', held, dead)
    end
    local have = tonumber(redis.call('HGET', held, item.worker) or 0)
    local others = -have
    for _, count in ipairs(redis.call('HVALS', held)) do others = others + tonumber(count) end
    if wanted == 0 then
      redis.call('ZREM', workers, item.worker)
      redis.call('HDEL', held, item.worker)
      replies[i] = {0, math.max(0, limit - others)}
    else
      redis.call('ZADD', workers, now + item.lease_ms, item.worker)
      local share = math.ceil(limit / redis.call('ZCARD', workers))
      -- What runs cannot be given up; the share only limits what is new.
      local granted = math.max(0, math.min(busy, have), math.min(wanted, limit - others, share))
      redis.call('HSET', held, item.worker, granted)
      replies[i] = {granted, math.max(0, limit - others - granted)}
    end
  end
  return replies
end

local function register(name, handle)
  redis.register_function('hw_' .. name, function(keys, args)
    local replies = {}
    for i, item in ipairs(cmsgpack.unpack(args[1])) do
      local ok, reply = pcall(handle, keys[1], item)
      if ok then
        replies[i] = reply
      else
        replies[i] = {'error', text_of(reply)}
      end
    end
    return cmsgpack.pack(replies)
  end)
end

register('append', append)
register('lease', lease)
register('commit', commit)
register('take', take)
register('record', record)
register('renew', renew)
register('settle', settle)
register('reclaim', reclaim)
register('slots', slots)
redis.register_function{
  function_name = 'hw_version',
  callback = function() return VERSION end,
  flags = {'no-writes'},
}
