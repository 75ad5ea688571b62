"""The Lua scripts: one for each verb that writes, each on the keys of one slot.

They read and write heads (`layout`) by position and never look into the rest. A number answers
for itself: 1 done, 0 not there or not to be done, -1 damaged, and `replace` also 2: enter the
session in the index of its user first. They use no command that Redis 6.2 lacks.
"""

from __future__ import annotations

import hashlib

__all__ = ["CLAIM", "CONFIRM", "CREATE", "DELETE", "ENTER", "FORGET", "REPLACE", "TOUCH", "Script"]


class Script:
    """A script and the name under which a server knows it."""

    __slots__ = ("sha", "text")

    def __init__(self, text: str) -> None:
        """Compute the name."""
        self.text = text.strip()
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


# read(key) -> head, reason; or nil and the answer: 0 there is none, -1 it is damaged.
_READ = r"""
local function read(key)
  local head = redis.pcall('GETRANGE', key, 0, 71)
  if type(head) ~= 'string' then return nil, -1 end
  if #head < 72 or head:sub(1, 3) ~= 'SJ\1' then
    return nil, (#head == 0 and redis.call('EXISTS', key) == 0) and 0 or -1
  end
  local reason = ''
  if head:sub(45, 48) ~= '\0\0\0\0' then
    reason = redis.call('GETRANGE', key, -struct.unpack('>I4', head, 45), -1)
  end
  if redis.sha1hex(head:sub(1, 64) .. reason):sub(1, 8) ~= head:sub(65) then return nil, -1 end
  return head, reason
end
local function seal(head, reason)
  return head .. redis.sha1hex(head .. reason):sub(1, 8)
end
local function expire(key, ttl)
  if ttl == '0' then redis.call('PERSIST', key) else redis.call('PEXPIRE', key, ttl) end
end
"""

# KEYS record due set-of-its-status; ARGV value sid due ttl
CREATE = Script(r"""
local made
if ARGV[4] == '0' then
  made = redis.call('SET', KEYS[1], ARGV[1], 'NX')
else
  made = redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[4], 'NX')
end
if not made then return 0 end
redis.call('ZADD', KEYS[2], ARGV[3], ARGV[2])
redis.call('ZADD', KEYS[3], 0, ARGV[2])
return 1
""")

# KEYS record due; ARGV expected-version value ttl entered
# Answers 1, 0, -1, 2, or the record that is there. The two sets of sids, of the same slot, are not
# among the keys: they are touched only where the status changes, and each key costs time.
REPLACE = Script(
    _READ
    + r"""
local head, reason = read(KEYS[1])
if not head then return reason end
local status = head:byte(4)
if status == 1 or status == 2 then return 0 end
if head:sub(5, 12) ~= ARGV[1] then return redis.call('GET', KEYS[1]) end
local new = ARGV[2]
local user = new:sub(57, 64)
if user ~= head:sub(57, 64) and user ~= '\0\0\0\0\0\0\0\0' and ARGV[4] == '0' then return 2 end
if ARGV[3] == '0' then
  redis.call('SET', KEYS[1], new)
else
  redis.call('SET', KEYS[1], new, 'PX', ARGV[3])
end
local sid = KEYS[1]:sub(-22)
redis.call('ZADD', KEYS[2], 'LT', string.format('%.17g', (struct.unpack('>d', new, 21))), sid)
if new:byte(4) ~= status then
  local sets = KEYS[2]:sub(1, -4)
  redis.call('ZREM', sets .. status, sid)
  redis.call('ZADD', sets .. new:byte(4), 0, sid)
end
return 1
"""
)

# KEYS record; ARGV expected-version version+seen+deadline ttl
TOUCH = Script(
    _READ
    + r"""
local head, reason = read(KEYS[1])
if not head then return reason end
local status = head:byte(4)
if status == 1 or status == 2 or head:sub(5, 12) ~= ARGV[1] then return 0 end
redis.call('SETRANGE', KEYS[1], 0, seal(head:sub(1, 4) .. ARGV[2] .. head:sub(29, 64), reason))
expire(KEYS[1], ARGV[3])
return 1
"""
)

# KEYS record due set0 set1 set2 set3 mark
# ARGV sid status reason at+due(packed) due ttl confirm; status '' removes altogether.
# Answers 0, or {1, hash of the user that it was a session of}.
# Where replicas are to confirm, the mark is written even if there was nothing to do: a repeated
# call then waits for the first one's write too.
# It begins with a write that takes no memory, since a server whose memory is full refuses only the
# first of a script: nobody must stay logged in because of that.
DELETE = Script(
    _READ
    + r"""
local key, sid, wanted = KEYS[1], ARGV[1], ARGV[2]
redis.call('ZREM', KEYS[2], '')
if ARGV[7] == '1' then redis.call('SET', KEYS[7], '', 'PX', 60000) end
local head, reason = read(key)
if not head and reason == 0 then return 0 end
local kept, live, data, length
if head then
  kept, live, data, length = struct.unpack('>I4I4I4I4', head, 33)
  if redis.call('STRLEN', key) ~= 72 + kept + live + data + length then head = nil end
end
local function move(status)
  for i = 0, 3 do
    if i ~= status then redis.call('ZREM', KEYS[3 + i], sid) end
  end
  if status then
    redis.call('ZADD', KEYS[3 + status], 0, sid)
    redis.call('ZADD', KEYS[2], ARGV[5], sid)
  else
    redis.call('ZREM', KEYS[2], sid)
    redis.call('DEL', key)
  end
end
if not head then
  move(nil)
  return {1, ''}
end
local status = head:byte(4)
local user = status < 2 and head:sub(57, 64) or ''
if wanted == '' then
  move(nil)
  return {1, user}
end
if status == 2 then return 0 end
if wanted == '1' and status == 1 then
  redis.call('ZADD', KEYS[2], ARGV[5], sid)
  expire(key, ARGV[6])
  return 0
end
local version = struct.pack('>I8', struct.unpack('>I8', head, 5) + 1)
local body
if wanted == '2' then
  if reason == '' then reason = ARGV[3] end
  body = redis.call('GETRANGE', key, 72, 71 + kept)
  head = 'SJ\1\2' .. version .. ARGV[4] .. head:sub(29, 36) .. '\0\0\0\0\0\0\0\0'
    .. struct.pack('>I4', #reason) .. head:sub(49, 52) .. '\0\0\0\0\0\0\0\0\0\0\0\0'
else
  reason = ARGV[3]
  body = redis.call('GETRANGE', key, 72, 71 + kept + live + data)
  head = 'SJ\1\1' .. version .. head:sub(13, 44) .. struct.pack('>I4', #reason)
    .. head:sub(49, 64)
  user = ''
end
redis.call('SET', key, seal(head, reason) .. body .. reason)
expire(key, ARGV[6])
move(tonumber(wanted))
return {1, user}
"""
)

# KEYS mark: writes, for who waits then until replicas have it and all that came before.
CONFIRM = Script("redis.call('SET', KEYS[1], '', 'PX', 60000) return 1")

# KEYS due set0 set1 set2 set3 what-the-keys-of-records-begin-with
# ARGV now due-again ttl sid...
# Answers {sid, record, ...} of those claimed; stops early when that is more than 4 MB.
CLAIM = Script(
    _READ
    + r"""
local now, claimed, size = tonumber(ARGV[1]), {}, 0
local function forget(sid)
  for i = 1, 5 do redis.call('ZREM', KEYS[i], sid) end
end
for i = 4, #ARGV do
  local sid = ARGV[i]
  local key = KEYS[6] .. sid
  local at = redis.call('ZSCORE', KEYS[1], sid)
  if at and tonumber(at) <= now then
    local head, reason = read(key)
    if not head then
      forget(sid)
    else
      local status, deadline = head:byte(4), (struct.unpack('>d', head, 21))
      if status ~= 1 and deadline > now then
        redis.call('ZADD', KEYS[1], string.format('%.17g', deadline), sid)
      elseif status > 1 then
        redis.call('DEL', key)
        forget(sid)
      else
        local version = struct.pack('>I8', struct.unpack('>I8', head, 5) + 1)
        local attempts = struct.pack('>I4', struct.unpack('>I4', head, 29) + 1)
        redis.call('SETRANGE', key, 0, seal(
          'SJ\1\1' .. version .. head:sub(13, 28) .. attempts .. head:sub(33, 64), reason))
        expire(key, ARGV[3])
        redis.call('ZADD', KEYS[1], ARGV[2], sid)
        if status == 0 then
          redis.call('ZREM', KEYS[2], sid)
          redis.call('ZADD', KEYS[3], 0, sid)
        end
        local record = redis.call('GET', key)
        claimed[#claimed + 1] = sid
        claimed[#claimed + 1] = record
        size = size + #record
        if size > 4194304 then return claimed end
      end
    end
  end
end
return claimed
"""
)

# KEYS index; ARGV sid
ENTER = Script(r"""
redis.call('ZADD', KEYS[1], redis.call('TIME')[1], ARGV[1])
return 1
""")

# KEYS index; ARGV age sid...: only what was entered that many seconds ago
FORGET = Script(r"""
local before, gone = redis.call('TIME')[1] - ARGV[1], 0
for i = 2, #ARGV do
  local at = redis.call('ZSCORE', KEYS[1], ARGV[i])
  if at and tonumber(at) <= before then gone = gone + redis.call('ZREM', KEYS[1], ARGV[i]) end
end
return gone
""")
