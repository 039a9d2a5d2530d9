-- POST /token with the correct password, for each user in a scattered order.
-- Argument: number of users.
local users, k

function init(args)
  users, k = tonumber(args[1]), 0
end

function request()
  k = k + 1
  local body = '{"username": "seed-' .. (k * 7919) % users .. '", "password": "correct horse battery"}'
  return wrk.format("POST", "/token", {["Content-Type"] = "application/json"}, body)
end
