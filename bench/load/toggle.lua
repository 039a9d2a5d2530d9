-- PUT /toggle-user-permission/<id>/<flag>: user after user, in an order that jumps about, and every pass turns every flag.
-- Arguments: users, number of the first request.
local users, k

function init(args)
  users, k = tonumber(args[1]), tonumber(args[2])
end

function request()
  local pass, place = math.floor(k / users), k % users
  k = k + 1
  return wrk.format("PUT", "/toggle-user-permission/" .. (1 + (place * 7919) % users) .. "/" .. (pass % 2))
end
