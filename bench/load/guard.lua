-- GET /predict, with each credential in turn. Argument: a file with one credential per line.
local requests, k = {}, 0

function init(args)
  for credential in io.lines(args[1]) do
    requests[#requests + 1] = wrk.format("GET", "/predict", { Authorization = "Bearer " .. credential })
  end
end

function request()
  k = k % #requests + 1
  return requests[k]
end
