-- Ask mlapi whether a user may send a request. deploy/haproxy.cfg loads this script.

local VERIFY_URL = "http://127.0.0.1:8010/verify"
local UNAVAILABLE = '{"message":"Service unavailable, try again"}'
-- The headers of mlapi that clients receive if their request is rejected.
local PASSED_ON = {"content-type", "www-authenticate", "retry-after", "ratelimit", "ratelimit-policy", "cache-control"}
local FORWARDED = {"authorization", "x-api-key", "x-forwarded-for", "x-forwarded-proto", "x-request-id"}

local function copy(from, names)
    local headers = {}
    for _, name in ipairs(names) do
        headers[name] = from[name]
    end
    return headers
end

local function reject(txn, status, body, headers)
    local reply = txn:reply()
    reply:set_status(status)
    for name, values in pairs(headers) do
        for _, value in pairs(values) do
            reply:add_header(name, value)
        end
    end
    reply:set_body(body)
    txn:done(reply)
end

core.register_action("mlapi-verify", {"http-req"}, function(txn)
    local request = txn.http:req_get_headers()
    local headers = {}
    for _, name in ipairs(FORWARDED) do
        if request[name] then
            headers[name] = {}
            for index, value in pairs(request[name]) do
                headers[name][index + 1] = value
            end
        end
    end
    headers["x-forwarded-method"] = {txn.f:method()}
    headers["x-forwarded-uri"] = {txn.f:pathq()}
    local response = core.httpclient():get{url = VERIFY_URL, headers = headers, timeout = 6000}
    local user_id = response and response.headers and response.headers["x-auth-request-user-id"]
    if not user_id or response.status ~= 200 then
        local content_type = response and response.headers and response.headers["content-type"]
        if content_type and content_type[0] == "application/json" then
            return reject(txn, response.status, response.body, copy(response.headers, PASSED_ON))
        end
        -- mlapi is unavailable, and this is an error page of HAProxy, or no response at all.
        return reject(txn, 503, UNAVAILABLE, {["content-type"] = {"application/json"}, ["retry-after"] = {"1"}})
    end
    for _, name in ipairs({"x-auth-request-user-id", "x-auth-request-user", "x-auth-request-plan"}) do
        if response.headers[name] then
            txn.http:req_set_header(name, response.headers[name][0])
        end
    end
    if response.headers["ratelimit"] then
        txn:set_var("txn.mlapi_limits", response.headers["ratelimit"][0])
    end
    if response.headers["ratelimit-policy"] then
        txn:set_var("txn.mlapi_limit_policy", response.headers["ratelimit-policy"][0])
    end
    txn:set_var("txn.mlapi_admitted", true)
end, 0)
