-- POST /register-user with a new username and e-mail address in every request.
-- Argument: a prefix that is unique to this run.
local prefix, k

function init(args)
  prefix, k = args[1], 0
end

function request()
  k = k + 1
  local name = prefix .. "-" .. k
  local body = '{"username": "' .. name .. '", "password": "correct horse battery", "email": "' .. name .. '@example.com"}'
  return wrk.format("POST", "/register-user", {["Content-Type"] = "application/json"}, body)
end
