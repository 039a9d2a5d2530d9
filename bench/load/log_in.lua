-- POST /token: one user after the other, each with the right password.
-- Arguments: users.
local users, k

function init(args)
  users, k = tonumber(args[1]), 0
end

function request()
  k = k + 1
  local body = '{"username": "seed-' .. (k * 7919) % users .. '", "password": "correct horse battery"}'
  return wrk.format("POST", "/token", {["Content-Type"] = "application/json"}, body)
end
