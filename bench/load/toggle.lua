-- PUT /toggle-user-permission/<id>/<flag> for all users in a scattered order. Each pass over the users changes every flag.
-- Arguments: number of users, number of the first request.
local users, k

function init(args)
  users, k = tonumber(args[1]), tonumber(args[2])
end

function request()
  local pass, index = math.floor(k / users), k % users
  k = k + 1
  return wrk.format("PUT", "/toggle-user-permission/" .. (1 + (index * 7919) % users) .. "/" .. (pass % 2))
end
