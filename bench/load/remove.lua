-- DELETE /remove-user/<id>, for each user in turn. Removing a user a second time counts as an error.
-- Argument: the first id.
local id

function init(args)
  id = tonumber(args[1])
end

function request()
  id = id + 1
  return wrk.format("DELETE", "/remove-user/" .. (id - 1))
end
