-- DELETE /remove-user/<id>, one user after the other. A user that was removed before counts as an error.
-- Argument: the first id.
local id

function init(args)
  id = tonumber(args[1])
end

function request()
  id = id + 1
  return wrk.format("DELETE", "/remove-user/" .. (id - 1))
end
