// Requests to the server, with its token if it wants one.

let token = sessionStorage.getItem("token") || "";

export async function api(path, body) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const options = body
    ? { method: "POST", body: JSON.stringify(body), headers: { ...headers, "Content-Type": "application/json" } }
    : { headers };
  let response;
  try { response = await fetch(path, options); } catch { throw new Error("The server cannot be reached. Is it still running?"); }
  if (response.status === 401) {
    token = prompt("This server needs its token:") || "";
    sessionStorage.setItem("token", token);
    if (token) return api(path, body);
  }
  if (!response.ok) {
    const told = await response.json().catch(() => null);
    throw new Error(told?.error?.message || `The server answered with status ${response.status}.`);
  }
  return response;
}

export async function json(path, body) { return (await api(path, body)).json(); }

// The address of an image for <img>; one that needs a token is fetched.
export async function imageAddress(path) {
  return token ? URL.createObjectURL(await (await api(path)).blob()) : path;
}

export const thumbnail = (id, size) => `v1/items/${id}/thumbnail?size=${size}`;
export const original = (id) => `v1/items/${id}/image`;

export async function openOriginal(id) { open(await imageAddress(original(id)), "_blank", "noopener"); }
