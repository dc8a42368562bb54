#!lua name=headwater

-- The Headwater function library: every write to a tenant's log goes through here, one atomic step per hop.
--
-- Calling convention, the same for all functions:
--   KEYS[1]  the shard's key prefix, such as hw:{s07} (for `slots`, hw:{agents}). It carries the hash tag, so the whole
--            call runs on the node that owns the shard; all other keys are built from it below and in streams/keys.py.
--   ARGV[1]  MessagePack: a list of items, each a map. Items are independent of each other. On a single node, an item
--            may name the prefix of another shard as `at`, so that one call serves many shards.
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
--                              the token is the agent that has calls waiting, for log readers it is "1". The workers
--                              of a lane have a bell of their own, "worker@<lane>", and agents "<agent>@<lane>"
--   S:due                zset  tenant -> ms at which its first deferred task is due
--   S:leases             zset  tenant|call -> ms at which the worker's lease on that call ends
--   S:turn               counter that orders the tenants in ready:agent:<id>
--   S:T:log              stream of facts
--   S:T:readers          hash  <reader> -> position read so far, <reader>:epoch -> number of the newest lease,
--                              trimmed -> newest position that was trimmed
--   S:T:state            hash  task -> the decider's folded state, while the task is open
--   S:T:queue:<agent>    zset  call -> priority rank and age
--   S:T:call:<id>        hash  body, agent, rank, owner, delivery, cancelled; s<key> -> position of a recorded step
--   S:T:dedup:<key>      string "position fingerprint task" of an accepted submission, expires
--   S:T:blob:<sha256>    string one large content
--   S:T:deferred         hash  task -> "attempts position position …": entries that the decider could not handle yet,
--                              and those of the same task behind them, oldest first
--   S:T:due              zset  task -> ms at which its deferred entries are tried again. One without waits for a person
--   S:T:steps            zset  call -> ms of its first recorded step, while the call is open
--   S:T:spent            hash  open task with a budget -> picodollars that its LLM requests have cost
--   S:T:blobs            zset  sha256 -> ms at which a fact last brought that content along
--   S:T:parked           stream of dead letters: entries that were given up, and calls that killed their workers
--   S:T:done             channel on which the end of a task is announced: "task position"
-- Keys of the prefix hw:{agents}, A:
--   A:workers:<agent>    zset  worker -> ms at which its loan of slots ends unless it renews it
--   A:slots:<agent>      hash  worker -> number of slots, each the right to run that agent once at a time

local VERSION = 12
local LOG_READERS = {'decider', 'projector'}
local MAX_DUE = 32  -- how many tasks are tried again in one batch
local LANE_BELL_S = 3600
local RANK = 2 ^ 44  -- a rank's share of a queue score: above it the priority, below it the turn

-- The text of an error that `pcall` caught: redis.call raises a table, Lua a string.
local function text_of(caught) return type(caught) == 'table' and (caught.err or 'unknown') or tostring(caught) end

-- The time stands still within one call, so it is asked for once.
local call_ms
local function now_ms()
  if not call_ms then
    local t = redis.call('TIME')
    call_ms = t[1] * 1000 + math.floor(t[2] / 1000)
  end
  return call_ms
end

-- Raises an error while nothing is written yet if a key that is about to be written holds another type.
local SIZE = {hash = 'HLEN', list = 'LLEN', stream = 'XLEN', string = 'STRLEN', zset = 'ZCARD'}
local function need(kind, key) redis.call(SIZE[kind], key) end

-- The same for the keys of a shard, which all items of a call use: once a call.
local checked = {}
local function need_once(kind, key)
  if checked[key] then return end
  need(kind, key)
  checked[key] = true
end

-- `write_facts` needs this, and the type of the log: its first write finds that out, unless something is written
-- before.
local FACT_SIZE = 11
local function need_facts(S, tenant, facts, blobs)
  if blobs and #blobs > 0 then need('zset', S .. ':' .. tenant .. ':blobs') end
  for _, f in ipairs(facts or {}) do
    if #f ~= FACT_SIZE then error('a fact has ' .. FACT_SIZE .. ' values, not ' .. #f, 0) end
  end
end

local function ring(S, reader, token)
  local bell = S .. ':bell:' .. reader
  if not redis.call('LPOS', bell, token) then redis.call('LPUSH', bell, token) end
end

-- The lane of an agent's queue with its "@", or nil.
local function lane_of(agent) return string.match(agent, '@.*$') end

-- Rings for the workers that serve an agent. Those of a lane may be gone for good: their bell goes by itself.
local function ring_workers(S, agent)
  local lane = lane_of(agent)
  ring(S, 'worker' .. (lane or ''), agent)
  if lane then redis.call('EXPIRE', S .. ':bell:worker' .. lane, LANE_BELL_S) end
end

-- Which of `readers` are to be woken for the tenant, found out before anything is written: a tenant that is ready or
-- leased already is left as it is, for its reader looks again when it commits.
local function sleeping(S, tenant, readers)
  local found = {}
  for _, reader in ipairs(readers) do
    if not redis.call('ZSCORE', S .. ':ready:' .. reader, tenant) then
      found[#found + 1] = {reader, redis.call('LPOS', S .. ':bell:' .. reader, '1')}
    end
  end
  return found
end

-- Marks the tenant as having something to read, for those that `sleeping` found.
local function wake(S, tenant, found, now)
  for _, reader in ipairs(found) do
    redis.call('ZADD', S .. ':ready:' .. reader[1], now, tenant)
    if not reader[2] then redis.call('LPUSH', S .. ':bell:' .. reader[1], '1') end
  end
end

-- Appends entries to the tenant's log, with the blobs they refer to. Returns their positions.
local function write_facts(S, tenant, facts, blobs)
  local log = S .. ':' .. tenant .. ':log'
  local positions = {}
  for i, f in ipairs(facts or {}) do
    positions[i] = redis.call('XADD', log, '*', 'id', f[1], 'type', f[2], 'v', f[3], 'session', f[4], 'task', f[5],
      'priority', f[6], 'source', f[7], 'chain', f[8], 'parent', f[9], 'at', f[10], 'body', f[11])
  end
  if blobs and #blobs > 0 then
    local ms = string.match(positions[#positions] or '0-0', '^%d+')
    for _, blob in ipairs(blobs) do
      redis.call('SET', S .. ':' .. tenant .. ':blob:' .. blob[1], blob[2], 'NX')
      redis.call('ZADD', S .. ':' .. tenant .. ':blobs', ms, blob[1])
    end
  end
  return positions
end

local function enqueue(S, tenant, call, agent, score, turn)
  redis.call('ZADD', S .. ':' .. tenant .. ':queue:' .. agent, score, call)
  redis.call('ZADD', S .. ':ready:agent:' .. agent, 'NX', turn, tenant)
  ring_workers(S, agent)
end

-- What is deferred of a task: how often its first entry was tried, and the positions. nil: nothing is.
local function deferred_of(S, tenant, task)
  local value = redis.call('HGET', S .. ':' .. tenant .. ':deferred', task)
  if not value then return nil end
  local attempts, positions = nil, {}
  for word in string.gmatch(value, '%S+') do
    if attempts then positions[#positions + 1] = word else attempts = tonumber(word) end
  end
  return attempts, positions
end

-- Writes what is deferred of a task, due at `at`, or without `at` when a person has to decide.
local function defer(S, tenant, task, attempts, positions, at)
  local prefix = S .. ':' .. tenant
  if #positions == 0 then
    redis.call('HDEL', prefix .. ':deferred', task)
    redis.call('ZREM', prefix .. ':due', task)
    return
  end
  redis.call('HSET', prefix .. ':deferred', task, attempts .. ' ' .. table.concat(positions, ' '))
  if at then redis.call('ZADD', prefix .. ':due', at, task) else redis.call('ZREM', prefix .. ':due', task) end
end

-- An entry of a task whose earlier ones are deferred waits behind them.
local function defer_behind(S, tenant, task, position, now)
  local attempts, positions = deferred_of(S, tenant, task)
  if attempts then
    redis.call('HSET', S .. ':' .. tenant .. ':deferred', task,
      attempts .. ' ' .. table.concat(positions, ' ') .. ' ' .. position)
  else
    -- Those before it were dropped meanwhile.
    defer(S, tenant, task, 0, {position}, now)
  end
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
  need_facts(S, item.tenant, {item.fact}, item.blobs)
  local readers = sleeping(S, item.tenant, LOG_READERS)
  local position = write_facts(S, item.tenant, {item.fact}, item.blobs)[1]
  redis.call('SET', dedup, position .. ' ' .. item.fingerprint .. ' ' .. item.task, 'PX', item.ttl_ms)
  wake(S, item.tenant, readers, now_ms())
  return {'new', position, item.task}
end

local function states_of(S, tenant, tasks)
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
  return states
end

local function give_lease(S, item, tenant, now)
  redis.call('ZADD', S .. ':ready:' .. item.reader, now + item.lease_ms, tenant)
  return redis.call('HINCRBY', S .. ':' .. tenant .. ':readers', item.reader .. ':epoch', 1)
end

-- The deferred entries of tasks that are due, as a batch of their own: it does not move the reader.
local function lease_due(S, item, tenant, tasks, now, room)
  local entries, tried = {}, {}
  for _, task in ipairs(tasks) do
    local attempts, positions = deferred_of(S, tenant, task)
    local count = 0
    for _, position in ipairs(positions or {}) do
      if room <= 0 then break end
      local entry = redis.call('XRANGE', S .. ':' .. tenant .. ':log', position, position)[1]
      if entry then entries[#entries + 1] = entry end
      count, room = count + 1, room - 1
    end
    if count > 0 then tried[#tried + 1] = {task, attempts, count} end
  end
  local states = states_of(S, tenant, tasks)
  local from = redis.call('HGET', S .. ':' .. tenant .. ':readers', item.reader) or '0-0'
  return {tenant, give_lease(S, item, tenant, now), from, from, entries, states, {}, tried}
end

-- The next batch of one tenant for a log reader, or nil when nothing of what it has not read is wanted.
local function lease_tenant(S, item, tenant, now, room)
  local prefix, ready = S .. ':' .. tenant, S .. ':ready:' .. item.reader
  local waiting = false
  if item.states then
    local due = redis.call('ZRANGE', prefix .. ':due', '-inf', now, 'BYSCORE', 'LIMIT', 0, MAX_DUE)
    if #due > 0 then return lease_due(S, item, tenant, due, now, room) end
    waiting = redis.call('HLEN', prefix .. ':deferred') > 0
  end
  local from = redis.call('HGET', prefix .. ':readers', item.reader) or '0-0'
  local entries = redis.call('XRANGE', prefix .. ':log', '(' .. from, '+', 'COUNT', room)
  local to = from
  local wanted, behind, tasks, known = {}, {}, {}, {}
  for _, entry in ipairs(entries) do
    to = entry[1]
    local kind, task
    for i = 1, #entry[2], 2 do
      local name = entry[2][i]
      if name == 'type' then kind = entry[2][i + 1] elseif name == 'task' then task = entry[2][i + 1] end
    end
    if not item.types or (kind and item.types[kind]) then
      if waiting and task and redis.call('HEXISTS', prefix .. ':deferred', task) == 1 then
        behind[#behind + 1] = {task, to}
      else
        wanted[#wanted + 1] = entry
        if item.states and task and not known[task] then
          known[task] = true
          tasks[#tasks + 1] = task
        end
      end
    end
  end
  if #wanted == 0 then
    redis.call('HSET', prefix .. ':readers', item.reader, to)
    for _, entry in ipairs(behind) do defer_behind(S, tenant, entry[1], entry[2], now) end
    if #entries < room then redis.call('ZREM', ready, tenant) else redis.call('ZADD', ready, now, tenant) end
    return nil
  end
  local states = states_of(S, tenant, tasks)
  return {tenant, give_lease(S, item, tenant, now), from, to, wanted, states, behind, {}}
end

-- lease: the next ready tenants for a log reader, each with a batch of what it has not read.
--   item   {reader, lease_ms, max_tenants, max_entries, types (set; absent: all), states (bool: it is the decider)}
--   reply  {{batch, …}, {{tenant, error}, …}, ms until something deferred is due, or -1}
--          batch {tenant, epoch, from, to, {{position, {field, value, …}}, …}, {task, state, …}, behind, tried}
--          behind {{task, position}, …}: entries that have to wait behind deferred ones of their task
--          tried {{task, attempts so far, number of its entries in the batch}, …}: the batch is of deferred entries
-- A leased tenant stays in `ready` with the lease's end as its score, so a dead reader's tenants become ready again
-- by themselves. Entries whose type is not wanted are read past here and not sent. A tenant with a damaged key is
-- named, and left alone for the length of a lease.
local function lease(S, item)
  local ready = S .. ':ready:' .. item.reader
  local now = now_ms()
  local batches, damaged = {}, {}
  local room = item.max_entries
  if item.states then
    for _, tenant in ipairs(redis.call('ZRANGE', S .. ':due', '-inf', now, 'BYSCORE', 'LIMIT', 0, item.max_tenants)) do
      -- A tenant that is leased now is looked at again when that lease is committed or ends.
      redis.call('ZREM', S .. ':due', tenant)
      redis.call('ZADD', ready, 'NX', now, tenant)
    end
  end
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
  local due = item.states and redis.call('ZRANGE', S .. ':due', 0, 0, 'WITHSCORES') or {}
  return {batches, damaged, due[2] and math.max(0, tonumber(due[2]) - now) or -1}
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

local function need_parked(S, tenant, parked)
  for _, fields in ipairs(parked or {}) do
    if #fields == 0 or #fields % 2 == 1 then error('a parked entry has names and values in pairs', 0) end
    need('stream', S .. ':' .. tenant .. ':parked')
  end
end

local function park(S, tenant, parked)
  for _, fields in ipairs(parked or {}) do redis.call('XADD', S .. ':' .. tenant .. ':parked', '*', unpack(fields)) end
end

local function defers(item) return #(item.tried or {}) + #(item.retries or {}) + #(item.behind or {}) > 0 end

local function need_commit(S, item)
  local prefix = S .. ':' .. item.tenant
  need_facts(S, item.tenant, item.facts, item.blobs)
  if #(item.states or {}) + #(item.ended or {}) > 0 then
    need('hash', prefix .. ':state')
    need('hash', prefix .. ':spent')
  end
  for _, call in ipairs(item.calls or {}) do
    need_once('list', S .. ':bell:worker' .. (lane_of(call[2]) or ''))
    need('hash', prefix .. ':call:' .. call[1])
    need('zset', prefix .. ':queue:' .. call[2])
    need_once('zset', S .. ':ready:agent:' .. call[2])
  end
  for _, id in ipairs(item.cancels or {}) do
    local call = prefix .. ':call:' .. id
    need('hash', call)
    need('zset', prefix .. ':queue:' .. (redis.call('HGET', call, 'agent') or ''))
  end
  need_parked(S, item.tenant, item.parked)
  if defers(item) then need('hash', prefix .. ':deferred') end
end

-- What of the batch could not be handled yet, or was and need not be tried again.
local function defer_rest(S, item, now)
  local retried = {}
  for _, retry in ipairs(item.retries or {}) do retried[retry[1]] = true end
  for _, done in ipairs(item.tried or {}) do
    local attempts, positions = deferred_of(S, item.tenant, done[1])
    local rest = {}
    for i = done[2] + 1, #(positions or {}) do rest[#rest + 1] = positions[i] end
    if done[2] > 0 then attempts = 0 end
    if not retried[done[1]] then defer(S, item.tenant, done[1], attempts, rest, now)
    elseif done[2] > 0 then defer(S, item.tenant, done[1], 0, rest) end
  end
  for _, retry in ipairs(item.retries or {}) do
    local _, positions = deferred_of(S, item.tenant, retry[1])
    defer(S, item.tenant, retry[1], retry[2], positions or {retry[4]}, retry[3] >= 0 and now + retry[3] or nil)
  end
  for _, entry in ipairs(item.behind or {}) do defer_behind(S, item.tenant, entry[1], entry[2], now) end
end

-- When the tenant's first deferred task is due, or nil.
local function first_due(S, tenant) return redis.call('ZRANGE', S .. ':' .. tenant .. ':due', 0, 0, 'WITHSCORES')[2] end

-- Keeps it known on the shard when the tenant's first deferred task is due. Due already: the tenant is ready.
local function arm(S, tenant, due, now)
  if tonumber(due) > now then
    redis.call('ZADD', S .. ':due', due, tenant)
  elseif redis.call('ZADD', S .. ':ready:decider', 'NX', now, tenant) == 1 then
    ring(S, 'decider', '1')
  end
end

-- commit: what a log reader made of its batch: facts, calls, states and the new position, all or nothing.
--   item   {reader, tenant, epoch, from, to, facts, blobs, calls {{id, agent, rank, body}}, states {{task, json}},
--           ended {task}, parked {{field, value, …}}, notify {{task, index of its fact}}, cancels {call},
--           tried {{task, number of its deferred entries that are done with}},
--           retries {{task, attempts so far, delay_ms (-1: parked), position}}, behind {{task, position}}}
--   reply  1 | {"stale"}   stale: the lease ended, or the tenant was leased again; nothing was written
local function commit(S, item)
  local now = now_ms()
  local prefix = S .. ':' .. item.tenant
  local ready, readers = S .. ':ready:' .. item.reader, prefix .. ':readers'
  local held = redis.call('HMGET', readers, item.reader, item.reader .. ':epoch')
  local ends = tonumber(redis.call('ZSCORE', ready, item.tenant) or 0)
  if (held[1] or '0-0') ~= item.from or tonumber(held[2]) ~= item.epoch or ends <= now then return {'stale'} end

  local log = prefix .. ':log'
  local position = item.to
  local caught_up = #redis.call('XRANGE', log, '(' .. item.to, '+', 'COUNT', 1) == 0
  need_commit(S, item)
  local others = {}
  for _, reader in ipairs(#(item.facts or {}) > 0 and LOG_READERS or {}) do
    if reader ~= item.reader then others[#others + 1] = reader end
  end
  local readers_asleep = sleeping(S, item.tenant, others)
  local due = item.reader == 'decider' and first_due(S, item.tenant)
  if due or defers(item) then
    need_once('zset', S .. ':due')
    need_once('list', S .. ':bell:decider')
  end
  -- The last thing that can fail, and the first that is written.
  local turn = #(item.calls or {}) > 0 and redis.call('INCRBY', S .. ':turn', #item.calls)
  local positions = write_facts(S, item.tenant, item.facts, item.blobs)
  -- With nothing in between, the reader need not read its own facts again.
  if caught_up and #positions > 0 then position = positions[#positions] end
  redis.call('HSET', readers, item.reader, position)
  if caught_up then redis.call('ZREM', ready, item.tenant) else redis.call('ZADD', ready, now, item.tenant) end

  for _, entry in ipairs(item.states or {}) do redis.call('HSET', prefix .. ':state', entry[1], entry[2]) end
  for _, task in ipairs(item.ended or {}) do
    redis.call('HDEL', prefix .. ':state', task)
    redis.call('HDEL', prefix .. ':spent', task)
  end
  for i, call in ipairs(item.calls or {}) do
    local mine = turn - #item.calls + i
    local score = call[3] * RANK + mine
    redis.call('HSET', prefix .. ':call:' .. call[1], 'agent', call[2], 'rank', score, 'body', call[4])
    enqueue(S, item.tenant, call[1], call[2], score, mine)
  end
  for _, id in ipairs(item.cancels or {}) do cancel(S, item.tenant, id) end
  park(S, item.tenant, item.parked)
  if defers(item) then
    defer_rest(S, item, now)
    due = first_due(S, item.tenant)
  end
  if due then arm(S, item.tenant, due, now) end
  for _, entry in ipairs(item.notify or {}) do
    redis.call('PUBLISH', prefix .. ':done', entry[1] .. ' ' .. positions[entry[2]])
  end
  wake(S, item.tenant, readers_asleep, now)
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
  local found = redis.call('HMGET', call, 'agent', 'body', 'cancelled')
  if not id or not found[1] then return nil end
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
  return {tenant, agent, id, delivery, found[2], steps, found[3] and 1 or 0}
end

-- take: the next calls for a worker's free places, one tenant after the other; within a tenant by priority, then age.
--   item   {worker, lease_ms, wants {{agent, count, ring (0 or 1: another worker could take what is left)}}}
--   reply  {{call, …}, {{tenant, error}, …}}
--          call {tenant, agent, call, delivery, body, {step key, position, …}, cancelled (0 or 1)}
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
    if want[3] == 1 and redis.call('EXISTS', ready) == 1 then ring_workers(S, agent) end
  end
  return {taken, damaged}
end

-- Does this worker still hold this delivery of the call? A lease that ended does not count, even if nobody took over.
-- The second value is the call's field `name`.
local function holds(S, item, now, name)
  local found = redis.call('HMGET', S .. ':' .. item.tenant .. ':call:' .. item.call, 'owner', 'delivery', name or '')
  local ends = redis.call('ZSCORE', S .. ':leases', item.tenant .. '|' .. item.call)
  return found[1] == item.worker and tonumber(found[2]) == item.delivery and ends and tonumber(ends) > now, found[3]
end

-- record: facts of a call that goes on, such as a finished step, once per key. Renews the lease.
--   item   {tenant, call, worker, delivery, lease_ms, key, facts, blobs,
--           spent {task, picodollars as text} (absent: its task has no budget)}
--   reply  {"recorded", position of the key's fact} | {"stale"}
local function record(S, item)
  local now = now_ms()
  local held, position = holds(S, item, now, 's' .. item.key)
  if not held then return {'stale'} end
  if not position then
    need_facts(S, item.tenant, item.facts, item.blobs)
    need('zset', S .. ':' .. item.tenant .. ':steps')
    if item.spent then need('hash', S .. ':' .. item.tenant .. ':spent') end
    local readers = sleeping(S, item.tenant, {'projector'})
    local positions = write_facts(S, item.tenant, item.facts, item.blobs)
    position = positions[#positions]
    redis.call('ZADD', S .. ':' .. item.tenant .. ':steps', 'NX', string.match(position, '^%d+'), item.call)
    redis.call('HSET', S .. ':' .. item.tenant .. ':call:' .. item.call, 's' .. item.key, position)
    -- What comes in after the task's end has nobody to hold back, and would stay for ever.
    if item.spent and redis.call('HEXISTS', S .. ':' .. item.tenant .. ':state', item.spent[1]) == 1 then
      redis.call('HINCRBY', S .. ':' .. item.tenant .. ':spent', item.spent[1], item.spent[2])
    end
    wake(S, item.tenant, readers, now)
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
--   item   {tenant, call, worker, delivery, facts, blobs, parked {{field, value, …}}}
--   reply  1 | {"stale"}
local function settle(S, item)
  local now = now_ms()
  if not holds(S, item, now) then return {'stale'} end
  need_facts(S, item.tenant, item.facts, item.blobs)
  local readers = sleeping(S, item.tenant, LOG_READERS)
  need('stream', S .. ':' .. item.tenant .. ':log')
  need_parked(S, item.tenant, item.parked)
  redis.call('ZREM', S .. ':' .. item.tenant .. ':steps', item.call)
  park(S, item.tenant, item.parked)
  write_facts(S, item.tenant, item.facts, item.blobs)
  redis.call('DEL', S .. ':' .. item.tenant .. ':call:' .. item.call)
  redis.call('ZREM', S .. ':leases', item.tenant .. '|' .. item.call)
  wake(S, item.tenant, readers, now)
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
      enqueue(S, tenant, id, found[1], found[2], redis.call('INCR', S .. ':turn'))
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

-- resolve: a person decides about a dead letter. Once: the entry is gone afterwards.
--   item   {tenant, id, how ("redrive" | "drop"), facts, blobs}
--   reply  1 | {"gone"}
-- redrive: the decider handles the original entry again, and then what waited behind it. drop: it is left out, what
-- waited behind it is handled, and then the fact of the dropping, which ends the task.
local function resolve(S, item)
  local now = now_ms()
  local prefix = S .. ':' .. item.tenant
  local entry = redis.call('XRANGE', prefix .. ':parked', item.id, item.id)[1]
  if not entry then return {'gone'} end
  local fields = {}
  for i = #entry[2] - 1, 1, -2 do fields[entry[2][i]] = entry[2][i + 1] end
  need_facts(S, item.tenant, item.facts, item.blobs)
  need('stream', prefix .. ':log')
  local readers = sleeping(S, item.tenant, LOG_READERS)
  need('hash', prefix .. ':deferred')
  need('zset', prefix .. ':due')
  need('zset', S .. ':due')
  if fields.waits and fields.waits ~= '' then
    local _, positions = deferred_of(S, item.tenant, fields.waits)
    positions = positions or {fields.position}
    if item.how == 'drop' then table.remove(positions, 1) end
    defer(S, item.tenant, fields.waits, 0, positions, now)
  elseif item.how == 'redrive' then
    error('a call that was parked cannot be redriven: its task went on without it', 0)
  end
  redis.call('XDEL', prefix .. ':parked', item.id)
  write_facts(S, item.tenant, item.facts, item.blobs)
  wake(S, item.tenant, readers, now)
  return 1
end

-- Is position a before position b? Compared as text: Lua's numbers are too small for 20 digits.
local function before(a, b)
  local a_ms, a_seq = string.match(a, '^(%d+)-(%d+)$')
  local b_ms, b_seq = string.match(b, '^(%d+)-(%d+)$')
  if a_ms ~= b_ms then
    if #a_ms ~= #b_ms then return #a_ms < #b_ms end
    return a_ms < b_ms
  end
  if #a_seq ~= #b_seq then return #a_seq < #b_seq end
  return a_seq < b_seq
end

-- trim: removes the oldest entries of a tenant's log, before position `upto`, that nothing here needs any more: every
-- reader has read them, and no deferred entry or open call refers to them. The caller knows that they are archived.
--   item   {tenant, upto, max: about how many entries at once, max_blobs}
--   reply  {number removed, position before which entries may be removed, {sha256, …}: contents not brought since}
local function trim(S, item)
  local prefix = S .. ':' .. item.tenant
  local bound = item.upto
  local function keep(position) if before(position, bound) then bound = position end end
  for _, reader in ipairs(LOG_READERS) do
    -- The entry at a reader's position itself stays, which costs nothing.
    keep(redis.call('HGET', prefix .. ':readers', reader) or '0-0')
  end
  for _, value in ipairs(redis.call('HVALS', prefix .. ':deferred')) do
    for position in string.gmatch(value, '%d+%-%d+') do keep(position) end
  end
  local steps = redis.call('ZRANGE', prefix .. ':steps', 0, 0, 'WITHSCORES')
  if steps[2] then keep(string.format('%.0f-0', tonumber(steps[2]))) end
  local log = prefix .. ':log'
  need('stream', log)
  -- Kept for who has to say what is missing. Written first: of what is removed nothing can be asked any more.
  local last = before('0-0', bound) and redis.call('XREVRANGE', log, '(' .. bound, '-', 'COUNT', 1)[1]
  if last then redis.call('HSET', prefix .. ':readers', 'trimmed', last[1]) end
  local removed = redis.call('XTRIM', log, 'MINID', '~', bound, 'LIMIT', item.max)
  -- What is left is less than a node of the stream.
  if removed == 0 then removed = redis.call('XTRIM', log, 'MINID', '=', bound) end
  local unused = redis.call('ZRANGE', prefix .. ':blobs', '-inf', '(' .. string.match(bound, '^%d+'), 'BYSCORE',
    'LIMIT', 0, item.max_blobs)
  return {removed, bound, unused}
end

-- rewind: a reader goes back and reads again what stands after `to`, for what it made of it is lost.
--   item   {tenant, reader, from, to}
--   reply  1 | {"stale"}   stale: it does not stand at `from`, or holds a lease; who holds it finds out by itself
local function rewind(S, item)
  local now = now_ms()
  local readers, ready = S .. ':' .. item.tenant .. ':readers', S .. ':ready:' .. item.reader
  local ends = tonumber(redis.call('ZSCORE', ready, item.tenant) or 0)
  if redis.call('HGET', readers, item.reader) ~= item.from or ends > now then return {'stale'} end
  need('list', S .. ':bell:' .. item.reader)
  redis.call('HSET', readers, item.reader, item.to)
  redis.call('ZADD', ready, now, item.tenant)
  ring(S, item.reader, '1')
  return 1
end

-- forget: removes contents that no fact has brought along since `bound`. The caller knows that they are archived, and
-- that no entry that is left refers to them.
--   item   {tenant, bound, hashes}
--   reply  number removed
local function forget(S, item)
  local prefix = S .. ':' .. item.tenant
  local ms = tonumber(string.match(item.bound, '^%d+'))
  local removed = 0
  for _, sha in ipairs(item.hashes) do
    local used = redis.call('ZSCORE', prefix .. ':blobs', sha)
    if used and tonumber(used) < ms then
      redis.call('ZREM', prefix .. ':blobs', sha)
      removed = removed + redis.call('DEL', prefix .. ':blob:' .. sha)
    end
  end
  return removed
end

local function register(name, handle, flags)
  redis.register_function{function_name = 'hw_' .. name, flags = flags or {}, callback = function(keys, args)
    local replies = {}
    checked, call_ms = {}, nil
    for i, item in ipairs(cmsgpack.unpack(args[1])) do
      local ok, reply = pcall(handle, item.at or keys[1], item)
      if ok then
        replies[i] = reply
      else
        replies[i] = {'error', text_of(reply)}
      end
    end
    return cmsgpack.pack(replies)
  end}
end

register('append', append)
register('lease', lease)
register('commit', commit)
register('take', take)
register('record', record)
-- Where flagged, a function runs when Redis is at its memory limit, too: it frees memory, or keeps what was begun and
-- paid for until it can be written.
register('renew', renew, {'allow-oom'})
register('settle', settle)
register('reclaim', reclaim)
register('slots', slots, {'allow-oom'})
register('resolve', resolve)
register('trim', trim, {'allow-oom'})
register('rewind', rewind)
register('forget', forget, {'allow-oom'})
redis.register_function{
  function_name = 'hw_version',
  callback = function() return VERSION end,
  flags = {'no-writes'},
}
