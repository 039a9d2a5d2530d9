-- GET the path, with each credential in turn. Arguments: a file with one credential per line; the path.
local requests, k = {}, 0

function init(args)
  for credential in io.lines(args[1]) do
    requests[#requests + 1] = wrk.format("GET", args[2] or "/predict", { Authorization = "Bearer " .. credential })
  end
end

function request()
  k = k % #requests + 1
  return requests[k]
end
