// Talking to the server: addresses and JSON. Slides go by their id.

export const slideUrl = (slideId, rest = "") => `api/slides/${encodeURIComponent(slideId)}${rest}`;

export async function getJson(url) {
  return answerOf(await fetch(url, { headers: { accept: "application/json" }, credentials: "same-origin" }));
}

export async function postJson(url, value) {
  return answerOf(await fetch(url, {
    method: "POST", credentials: "same-origin", headers: { "content-type": "application/json" }, body: JSON.stringify(value),
  }));
}

async function answerOf(response) {
  let answer = {};
  try {
    answer = await response.json();
  } catch {
    // an answer without JSON has nothing more to say than its status
  }
  if (!response.ok) {
    const error = new Error(answer.error || `the viewer answered ${response.status}`);
    error.status = response.status;
    throw error;
  }
  return answer;
}
