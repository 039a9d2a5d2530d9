-- POST /token with the correct password, for each user in a scattered order.
-- Arguments: number of users; number of client addresses that a trusted proxy reports, or none.
local users, addresses, k

function init(args)
  users, addresses, k = tonumber(args[1]), tonumber(args[2] or "0"), 0
end

function request()
  k = k + 1
  local body = '{"username": "seed-' .. (k * 7919) % users .. '", "password": "correct horse battery"}'
  local headers = {["Content-Type"] = "application/json"}
  if addresses > 0 then
    local address = k % addresses
    headers["X-Forwarded-For"] = "10.0." .. math.floor(address / 256) .. "." .. address % 256
  end
  return wrk.format("POST", "/token", headers, body)
end
